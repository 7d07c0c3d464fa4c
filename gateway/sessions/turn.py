"""One chat request in a session: its turn is awaited, the history put in front, and both sides are kept.

It stands between an exchange and its client. So the request is routed, held, queued, sent again and counted
as any other one; only its body is another, and the end of its reply waits until the turn is stored: whoever
has a whole reply finds it in the session. A reply that breaks, or that the client leaves, keeps nothing.
"""

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from gateway import heads
from gateway.affinity import SESSION_HEADER
from gateway.errors import RequestError, internal_error
from gateway.sessions import conversation
from gateway.sessions.reply import Reply
from gateway.sessions.values import Held, viewer_of

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.sessions.service import Sessions
    from gateway.sessions.turns import Turns

logger = logging.getLogger("gateway")

# How long a request waits for the turns before it, seconds. Those may be long answers.
WAIT_S = 300.0
# How often a session is asked for that another worker holds, seconds: soon, then less and less often.
FIRST_LOOK_S = 0.005
LAST_LOOK_S = 0.1


class Turn:
    """To its exchange this is the client, and its transport."""

    tunnel = None
    is_continue_awaited = False

    def __init__(self, sessions: "Sessions", exchange: "Exchange") -> None:
        """Raises RequestError (400) for a session that cannot be one."""
        self.exchange = exchange
        self._sessions = sessions
        self._session_id = _checked(exchange.asked.session)
        self._protocol = exchange.client
        self.lane, self.flow, self.client = exchange.lane, exchange.client.flow, exchange.client.client
        self.transport = self
        self._reply = Reply()
        # What of the reply waits until the turn is stored.
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._last = b""
        self._has_left = False
        # Done when the exchange is.
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; the exchange hears of it when it is to be dispatched, or is refused."""
        self.exchange.client = self  # type: ignore[assignment]  # it has all that is asked of one from now on
        self.exchange.turn = self
        self._task = asyncio.create_task(self._run())

    def client_left(self) -> None:
        """Nobody waits for it any more."""
        self._has_left = True
        self._end()

    # Of the exchange's client, and of its transport.

    def exchange_is_over(self, exchange: "Exchange") -> None:
        # To the connection it goes on: the next request has to wait.
        exchange.response_complete = False
        self._end()

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def get_extra_info(self, name: str) -> Any:
        return self._protocol.transport.get_extra_info(name)

    def write(self, data: bytes) -> None:
        self._reply.feed(data)
        if self._reply.is_stream and not self._reply.is_over:
            self._pass_on(data)
            return
        self._kept.append(data)
        self._kept_size += len(data)
        if self._kept_size > self.lane.body_limit:
            # No engine says so much; whatever it is, it is not kept in memory.
            self._reply.forget()
            self._pass_on_kept()

    # How it goes.

    async def _run(self) -> None:
        try:
            await self._take_turn()
        except RequestError as error:
            self._refuse(error)
        except Exception:
            logger.exception("request %s failed by a defect of sage", self.exchange.asked.id)
            self._refuse(internal_error(self.exchange.asked.id))
        if self._has_left or self.is_closing():
            self.exchange.response_complete = True
            return
        self._pass_on_kept()
        self.exchange.response_complete = True
        self._protocol.exchange_is_over(self.exchange)

    async def _take_turn(self) -> None:
        new = conversation.read(self.exchange.asked.plain)
        turns = await self._sessions.turns()
        place = self._sessions.join(self._session_id)
        try:
            held = await self._wait(turns, place)
            if held is not None:
                await self._converse(turns, held, new)
        finally:
            self._sessions.leave(self._session_id, place)

    async def _wait(self, turns: "Turns", place: asyncio.Future[None]) -> Held | None:
        """The session, once it is this one's turn; None if the client has left. Raises RequestError."""
        deadline, pause = monotonic() + WAIT_S, FIRST_LOOK_S
        await asyncio.wait({place, self._over}, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        while place.done() and not self._has_left:
            held = await turns.begin(viewer_of(self.exchange.key), self._session_id)
            if held is not None:
                return held
            if monotonic() > deadline:
                break
            await asyncio.wait({self._over}, timeout=pause)
            pause = min(pause * 1.5, LAST_LOOK_S)
        if self._has_left:
            return None
        message = f"The session answers other requests, for more than {WAIT_S:g} s. Try again later."
        raise RequestError(409, message, "session_busy", param="session_id", retry_after="10")

    async def _converse(self, turns: "Turns", held: Held, new: conversation.New) -> None:
        self._sessions.hold(held.holder)
        is_given_up = False
        try:
            if not self._has_left:
                self._ask(conversation.body_of(new, held.instructions, held.said))
                await self._over
                message = "" if self._has_left or self.exchange.code else self._reply.message()
                if message:
                    is_given_up = await turns.end(held, new, self.exchange.asked.model, message)
        finally:
            self._sessions.let_go(held.holder)
            if not is_given_up:
                await turns.give_up(held)

    def _ask(self, body: bytes) -> None:
        asked = self.exchange.asked
        session = (SESSION_HEADER, self._session_id.encode())
        # An engine that packs its reply would hide it from what reads it here.
        dropped = (b"accept-encoding", SESSION_HEADER)
        asked.replace_body(body, [*(pair for pair in asked.headers if pair[0] not in dropped), session])
        self.exchange.dispatch()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _refuse(self, error: RequestError) -> None:
        """Answers with this error, as far as nothing else was answered."""
        exchange = self.exchange
        if not self._over.done():
            exchange.refuse(error)
            return
        # The engine has answered, and what it said is not in the session.
        logger.error("request %s: %s", exchange.asked.id, error)
        self._kept.clear()
        body = error.body()
        if not self._reply.is_stream:
            head = heads.of_error(error.status, error.headers.items(), body, exchange.added_lines(b"sage"))
            self._kept.append(head + body)
        elif self._last.endswith(b"\n\n\r\n"):
            event = b"data: " + body + b"\n\n"
            self._kept.append(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))
        else:
            self._protocol.transport.abort()

    def _pass_on(self, data: bytes) -> None:
        if not self.is_closing():
            self._last = data
            self._protocol.transport.write(data)

    def _pass_on_kept(self) -> None:
        if self._kept:
            self._pass_on(b"".join(self._kept))
            self._kept.clear()


def _checked(session: object) -> str:
    if isinstance(session, str) and session and session.isascii() and session.isprintable():
        return session
    message = "'session_id' must be the id of a session, as POST /sessions gives it."
    raise RequestError(400, message, "invalid_session", param="session_id")
