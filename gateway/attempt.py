"""One sending of a request to one backend, and its reply on the way to the client."""

import asyncio
import re
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING

import httptools

from gateway.errors import RequestError, stream_broken
from gateway.heads import ReplyHead
from gateway.upstream import NOT_HTTP, EngineConnection, take

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.member import Member

# What an engine says when it is not able to answer, though another one may be.
RETRIED = frozenset({502, 503, 504})
_PROMPT_TOKENS = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d{1,12})')
_COMPLETION_TOKENS = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,12})')
# The usage is at the end of a reply, or in one of the last events of a stream.
_TAIL_BYTES = 2048
# How a stream ends that was sent event by event, each a chunk of its own: a blank line, in either way of
# writing one, and the end of the chunk.
_BETWEEN_EVENTS = (b"\n\n\r\n", b"\r\n\r\n\r\n")
# Of SO_LINGER: nothing is waited for at the end, so that the kernel sends a reset.
_AT_ONCE = struct.pack("ii", 1, 0)


class Attempt:
    """Receives what a backend answers. Times are loop seconds, 0.0 for what has not happened.

    The reply's head waits for the first byte of its body: until then another backend may be asked.
    """

    __slots__ = (
        "_before_tail",
        "_connecting",
        "_tail",
        "_unchunk",
        "_write",
        "bytes_out",
        "connection",
        "exchange",
        "first_at",
        "head",
        "is_passed_on",
        "is_stream",
        "last_at",
        "member",
        "sent_at",
    )

    def __init__(self, exchange: "Exchange", member: "Member", now: float) -> None:
        self.exchange = exchange
        self.member = member
        self.connection: EngineConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.head: ReplyHead | None = None
        self.is_passed_on = self.is_stream = False
        self.sent_at = now
        self.first_at = self.last_at = 0.0
        self.bytes_out = 0
        self._write = exchange.client.transport.write
        self._unchunk: _Unchunk | None = None
        self._before_tail = self._tail = b""

    def start(self, now: float) -> None:
        """Sends the request over a kept connection, or else a new one."""
        connection = take(self.member.idle, now)
        if connection is not None:
            self._send(connection)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def leave(self) -> None:
        """Ends the engine's work; nothing more is heard of it."""
        if self.connection is not None:
            self.connection.leave()
        elif self._connecting is not None:
            self._connecting.cancel()

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.resume()

    def give_up(self, reason: str) -> None:
        """Ends a reply in its middle."""
        self.leave()
        self._end_broken(reason)
        self.exchange.on_broken(self, reason)

    # Of the connection.

    def on_head(self, head: ReplyHead) -> bool:
        if head.status in RETRIED and self.exchange.goes_elsewhere(self):
            self.exchange.on_unable(self, f"it answered {head.status}")
            return False
        self.head = head
        self.is_stream = b"text/event-stream" in head.lower
        return True

    def on_piece(self, data: bytes) -> None:
        now = monotonic()
        if len(self._tail) < _TAIL_BYTES:
            self._tail += data
        else:
            self._before_tail, self._tail = self._tail, data
        self.bytes_out += len(data)
        try:
            if self.is_passed_on:
                if self.is_stream:
                    self.exchange.meter.gap.observe(now - self.last_at)
                self._write(data if self._unchunk is None else self._unchunk(data))
            else:
                self.first_at = now
                head = self._pass_on_head()
                # One write, for each is a call of the system.
                self._write(head + (data if self._unchunk is None else self._unchunk(data)))
                if self.exchange.client.flow.write_paused:
                    # Perhaps since an earlier reply, which nobody tells again.
                    self.pause()
        except RuntimeError:
            # The client's connection broke at the last write, as it is about to be told.
            self.leave()
        self.last_at = self.member.heard_at = now

    def on_end(self) -> None:
        if not self.is_passed_on:
            self.first_at = self.last_at = monotonic()
            self._write(self._pass_on_head())
        self.exchange.on_answered(self)

    def on_lost(self, reason: str, kind: str) -> None:
        if not self.is_passed_on:
            self.exchange.on_lost(self, reason, kind)
            return
        self._end_broken(reason)
        self.exchange.on_broken(self, reason)

    def on_switched(self, connection: EngineConnection, head: bytes, rest: bytes) -> None:
        tunnel = self.exchange.client.tunnel
        if tunnel is None:
            connection.transport.abort()
            self.exchange.on_lost(self, "it switched protocols without being asked", NOT_HTTP)
            return
        self.is_passed_on = True
        self.first_at = self.last_at = self.member.heard_at = monotonic()
        tunnel.open(self, connection, head, rest)

    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens as the reply tells them, 0 where it does not."""
        tail = (self._before_tail[-_TAIL_BYTES:] + self._tail)[-_TAIL_BYTES:]
        at = tail.rfind(b'"usage"')
        if at < 0:
            return 0, 0
        prompt, completion = _PROMPT_TOKENS.search(tail, at), _COMPLETION_TOKENS.search(tail, at)
        return int(prompt[1]) if prompt else 0, int(completion[1]) if completion else 0

    async def _connect(self) -> None:
        try:
            connection = await self.member.connect()
        except (OSError, TimeoutError) as error:
            self.exchange.on_unreached(self, str(error) or "no connection within the time")
            return
        self.sent_at = monotonic()
        self._send(connection)

    def _send(self, connection: EngineConnection) -> None:
        self.connection = connection
        self.exchange.sends += 1
        try:
            plan = self.exchange.plan
            model = (plan and plan.route.model) or self.member.backend.model
            connection.send(self, *self.exchange.asked.for_member(self.member, model))
        except RequestError as error:
            self.exchange.refuse(error)

    def _pass_on_head(self) -> bytes:
        """The head as the client gets it; from now on nobody else can be asked."""
        head, exchange = self.head, self.exchange
        assert head is not None
        self.is_passed_on = True
        exchange.asked.forget_body()
        knows_chunks = exchange.knows_chunks
        if not head.is_chunked and head.length < 0 and head.status not in (204, 304):
            exchange.keep_alive = False  # the end of the connection is the end of the reply
        if head.is_chunked and not knows_chunks:
            self._unchunk = _Unchunk(head)
            exchange.keep_alive = False
        return head.to_client(exchange.added_lines(b"engine"), knows_chunks)

    def _end_broken(self, reason: str) -> None:
        """Tells the client, where the reply is a stream of events that ended between two of them.

        Elsewhere the lack of an end tells it, or a reset, where the end of the connection would be the end.
        """
        head = self.head
        if head is None or not head.is_event_stream or not self._tail.endswith(_BETWEEN_EVENTS):
            if head is not None and head.length < 0 and (self._unchunk is not None or not head.is_chunked):
                _close_by_reset(self.exchange.client.transport)
            self.exchange.keep_alive = False
            return
        event = b"data: " + stream_broken(self.exchange.asked.model, reason).body() + b"\n\n"
        if self._unchunk is None:
            event = b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
        self._write(event)


def _close_by_reset(transport: asyncio.Transport) -> None:
    """When the connection is closed, the client is not to take that for the end of a reply."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)


class _Unchunk:
    """The body of a chunked reply without its chunks, for clients of HTTP/1.0."""

    def __init__(self, head: ReplyHead) -> None:
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(head.raw)

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def __call__(self, data: bytes) -> bytes:
        self._parser.feed_data(data)
        body = b"".join(self._parts)
        self._parts.clear()
        return body
