"""What the store of sessions takes and gives. Times are Unix time in seconds."""

from dataclasses import dataclass

from gateway.errors import RequestError, shown
from gateway.keys import Key
from gateway.sessions.conversation import Said


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who asks: the digest and the name of a key. Without keys, and for administrators, all is there."""

    owner: str = ""
    name: str = ""
    sees_all: bool = True


def viewer_of(key: Key | None) -> Viewer:
    return Viewer() if key is None else Viewer(key.digest.hex(), key.name, key.is_admin)


@dataclass(frozen=True, slots=True)
class Session:
    """A session without its turns."""

    id: str
    owner_name: str
    title: str
    created_at: float
    updated_at: float
    turns: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A session with those of its turns that were asked for, oldest first, and the instructions that act."""

    session: Session
    instructions: str
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A session whose turn it is. `said` is what of it goes before the new messages."""

    session_id: str
    holder: str
    instructions: str
    said: tuple[Said, ...]


def not_found(session_id: str) -> RequestError:
    """404; also for a session of another key, which nobody is to find out about."""
    message = (
        f"There is no session '{shown(session_id)}' for this API key: POST /sessions makes one, GET "
        "/sessions lists them. To choose a replica by a name of your own, send it as the header X-Session-ID."
    )
    return RequestError(404, message, "session_not_found", param="session_id")
