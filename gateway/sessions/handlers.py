"""The paths of sessions. Which of them a key may see is decided by who made them."""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec.example import Example
from litestar.params import Body, Parameter

from gateway.admin import not_json
from gateway.described import errors
from gateway.lane import Lane
from gateway.sessions.conversation import Said
from gateway.sessions.service import Sessions
from gateway.sessions.values import Conversation, Session, viewer_of

AnyRequest = Request[Any, Any, State]
TAGS = ["sessions"]
MAX_TITLE = 200
ID = "sess_3u7mB1n4QxWc0Zk9tYhR2aLs"
# Messages are told as they are, and not read for it.
_RAW: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[msgspec.Raw])
# Of the framework, while it reads a body.
FAULTS: Any = {RecursionError: not_json, UnicodeDecodeError: not_json}

Title = Annotated[str, msgspec.Meta(max_length=MAX_TITLE, pattern=r"^[^\x00-\x1f\x7f\ud800-\udfff]*$")]
Limit = Annotated[int, Parameter(ge=1, le=100, description="How many at most")]
# A century: what is older cannot be.
Minutes = Annotated[
    int,
    Parameter(ge=0, le=60 * 24 * 36525, description="Not used for so long", examples=[Example(value=10080)]),
]
Id = Annotated[str, Parameter(examples=[Example(value=ID)], description="As POST /sessions told it")]


Before = Annotated[
    int, Parameter(ge=0, le=2**31 - 1, description="Only turns before this number; 0 for the last ones")
]


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """Without a title it gets the first words that the user says in it."""

    title: Title = ""


class NewTitle(msgspec.Struct, forbid_unknown_fields=True):
    title: Title


class SessionTold(msgspec.Struct):
    """A session. Times are Unix time in seconds; `owner` is the name of the API key that made it."""

    id: str
    title: str
    owner: str
    created_at: float
    updated_at: float
    turns: int
    object: str = "session"


class SessionsTold(msgspec.Struct):
    """A page of sessions, newest first. The next page is after `last_id`."""

    data: list[SessionTold]
    has_more: bool
    last_id: str | None
    object: str = "list"


class TurnTold(msgspec.Struct):
    """One turn: what was new in the request, and what answered it, as they were sent."""

    number: int
    messages: list[dict[str, Any]]


class ConversationTold(SessionTold, kw_only=True):
    """A session with its last turns, oldest first; `has_more` says whether there are earlier ones.

    `instructions` are the system messages that act now.
    """

    instructions: list[dict[str, Any]]
    history: list[TurnTold]
    has_more: bool


class Deleted(msgspec.Struct):
    id: str
    deleted: bool = True
    object: str = "session.deleted"


class CleanedUp(msgspec.Struct):
    """How many sessions were deleted."""

    deleted: int


def session_handlers(lane: Lane) -> list[HTTPRouteHandler]:
    """All of them."""
    return [*_shown(lane.sessions), *_of_all(lane.sessions), *_of_one(lane.sessions)]


def _shown(sessions: Sessions) -> list[HTTPRouteHandler]:
    @get(
        "/sessions", summary="The sessions of the API key, newest first", tags=TAGS, responses=_told(400, 404)
    )
    async def page(request: AnyRequest, limit: Limit = 20, after: str = "") -> SessionsTold:
        store = await sessions.store()
        found = await store.page(_viewer(request), limit + 1, after)
        shown = found[:limit]
        last = shown[-1].id if shown else None
        return SessionsTold([_told_of(one) for one in shown], len(found) > limit, last)

    @get(
        "/sessions/{session_id:str}",
        summary="A session and what was said in it",
        tags=TAGS,
        responses=_told(400, 404),
    )
    async def conversation(
        request: AnyRequest,
        session_id: Id,
        limit: Limit = 50,
        before: Before = 0,
    ) -> ConversationTold:
        store = await sessions.store()
        found = await store.conversation(_viewer(request), session_id, limit + 1, before)
        return _conversation(found, limit)

    return [page, conversation]


def _of_all(sessions: Sessions) -> list[HTTPRouteHandler]:
    @post("/sessions", summary="Begins a session", tags=TAGS, exception_handlers=FAULTS, responses=_told(400))
    async def create(
        request: AnyRequest,
        data: Annotated[NewSession, Body(examples=[Example(value={"title": "Holidays"})])],
    ) -> SessionTold:
        store = await sessions.store()
        return _told_of(await store.create(_viewer(request), data.title))

    @post(
        "/sessions/cleanup",
        status_code=200,
        summary="Deletes the sessions that were not used for a while: of the key; for an admin key, of all",
        tags=TAGS,
        responses=_told(400),
    )
    async def cleanup(request: AnyRequest, max_age_minutes: Minutes) -> CleanedUp:
        store = await sessions.store()
        return CleanedUp(await store.cleanup(_viewer(request), max_age_minutes * 60.0))

    return [create, cleanup]


def _of_one(sessions: Sessions) -> list[HTTPRouteHandler]:
    about_one: Any = {"tags": TAGS, "responses": _told(400, 404)}

    @delete(
        "/sessions/{session_id:str}",
        status_code=200,
        summary="Forgets a session",
        **about_one,
    )
    async def forget(request: AnyRequest, session_id: Id) -> Deleted:
        store = await sessions.store()
        await store.delete(_viewer(request), session_id)
        return Deleted(session_id)

    @post(
        "/sessions/{session_id:str}/clear",
        status_code=200,
        summary="Forgets what was said in a session",
        **about_one,
    )
    async def clear(request: AnyRequest, session_id: Id) -> SessionTold:
        store = await sessions.store()
        return _told_of(await store.clear(_viewer(request), session_id))

    @patch(
        "/sessions/{session_id:str}/title",
        summary="Gives a session a title",
        exception_handlers=FAULTS,
        **about_one,
    )
    async def set_title(
        request: AnyRequest,
        session_id: Id,
        data: Annotated[NewTitle, Body(examples=[Example(value={"title": "May"})])],
    ) -> SessionTold:
        store = await sessions.store()
        return _told_of(await store.set_title(_viewer(request), session_id, data.title))

    return [forget, clear, set_title]


def _told(*statuses: int) -> Any:
    return errors(*statuses, 401, 501, 503)


def _viewer(request: AnyRequest) -> Any:
    return viewer_of(request.scope["state"].get("key"))


def _told_of(session: Session) -> SessionTold:
    return SessionTold(
        session.id,
        session.title,
        session.owner_name,
        session.created_at,
        session.updated_at,
        session.turns,
    )


def _conversation(found: Conversation, limit: int) -> ConversationTold:
    has_more = len(found.said) > limit
    turns = [TurnTold(turn.number, _messages(turn)) for turn in found.said[-limit:]]
    instructions = _RAW.decode(found.instructions or "[]")
    told = msgspec.structs.asdict(_told_of(found.session))
    return ConversationTold(**told, instructions=instructions, history=turns, has_more=has_more)


def _messages(turn: Said) -> list[dict[str, Any]]:
    return [*_RAW.decode(turn.request), msgspec.Raw(turn.reply.encode())]
