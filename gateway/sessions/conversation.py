"""What an engine is asked in a conversation: what was said before, then what is new. Pure.

Messages are never read further than their role: each one goes on, and is kept, byte for byte.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import RequestError

# What a model is told before anybody speaks to it.
INSTRUCTIONS = frozenset({"system", "developer"})
# What answers the calls of the message before it, and means nothing without them.
RESULTS = frozenset({"tool", "function"})
TITLE_LENGTH = 60


class _Message(msgspec.Struct):
    role: str
    content: Any = None


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_MESSAGE = msgspec.json.Decoder(_Message)


@dataclass(frozen=True, slots=True)
class Said:
    """One turn that is kept: the messages of the request and the one of the reply, as JSON."""

    number: int
    request: str
    reply: str

    @property
    def follows_calls(self) -> bool:
        """Whether it begins with results of calls that the turn before it made."""
        first = msgspec.json.decode(self.request, type=list[_Message])[:1]
        return bool(first) and first[0].role in RESULTS


@dataclass(frozen=True, slots=True)
class New:
    """What a request says: its fields but for the conversation, its instructions, its other messages."""

    fields: dict[str, msgspec.Raw]
    instructions: tuple[bytes, ...]
    messages: tuple[bytes, ...]

    @property
    def instructions_text(self) -> str:
        """As they are kept; "" where there are none."""
        return _array(self.instructions) if self.instructions else ""

    @property
    def messages_text(self) -> str:
        return _array(self.messages)

    def title(self) -> str:
        """The beginning of what the user says first, "" if that is no text."""
        for raw in self.messages:
            message = _MESSAGE.decode(raw)
            if message.role == "user":
                words = _text_of(message.content).split()
                text = "".join(sign for sign in " ".join(words) if sign.isprintable())
                return text if len(text) <= TITLE_LENGTH else text[: TITLE_LENGTH - 1].rstrip() + "…"
        return ""


def read(body: bytes) -> New:
    """Reads the body of a chat request. Raises RequestError (400) where it has no messages."""
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"The request body is not JSON as a session takes it: {error}."
        raise RequestError(400, message, "invalid_json") from error
    fields.pop("session_id", None)
    try:
        messages = [bytes(raw) for raw in _LIST.decode(fields.pop("messages", msgspec.Raw(b"[]")))]
        roles = [_MESSAGE.decode(raw).role for raw in messages]
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"'messages' must be a list of objects with a role: {error}."
        raise RequestError(400, message, "invalid_messages", param="messages") from error
    first = next((at for at, role in enumerate(roles) if role not in INSTRUCTIONS), len(roles))
    if first == len(roles):
        message = (
            "In a session, 'messages' must hold what is new: at least one message that is no instruction."
        )
        raise RequestError(400, message, "invalid_messages", param="messages")
    return New(fields, tuple(messages[:first]), tuple(messages[first:]))


def body_of(new: New, instructions: str, history: Iterable[Said]) -> bytes:
    """The request as an engine gets it. `instructions` are those that were kept: new ones go before them."""
    said = [_inside(new.instructions_text or instructions)]
    said += [part for turn in history for part in (_inside(turn.request), turn.reply.encode())]
    said.append(b",".join(new.messages))
    pairs = [msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in new.fields.items()]
    pairs.append(b'"messages":[' + b",".join(filter(None, said)) + b"]")
    return b"{" + b",".join(pairs) + b"}"


def without_orphans(history: Sequence[Said]) -> Sequence[Said]:
    """The history from the first turn on that can stand at its beginning."""
    for at, turn in enumerate(history):
        if not turn.follows_calls:
            return history[at:]
    return ()


def _array(messages: Iterable[bytes]) -> str:
    return (b"[" + b",".join(messages) + b"]").decode()


def _inside(array: str) -> bytes:
    """The items of a JSON list as it was kept."""
    return array[1:-1].encode()


def _text_of(content: object) -> str:
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)
