"""The connections to the engines: one request in, the reply's bytes out as they arrive, unchanged."""

import asyncio
from time import monotonic
from typing import Protocol

import httptools

from gateway.heads import ReplyHead

# Engines under uvicorn close idle connections after 5 s: ours go first, lest one is closed under a request.
KEEP_ALIVE_S = 4.0
# As much as the gateway takes of a client.
MAX_HEAD_BYTES = 64 << 10

# How every head begins that is read here.
_START = b"HTTP/1."
# The end of a body in chunks: that of the line "0", or of the last trailer, and an empty line.
_END = b"\r\n\r\n"
_END_BYTES = len(_END)

# The engine broke the connection; so it did with one that was kept idle, before anything came over it; what
# came is not the reply that HTTP allows.
RESET, STALE, NOT_HTTP = "reset", "stale", "not_http"


class Receiver(Protocol):
    """Who asked. Called in this order: head, pieces, then one of end and lost."""

    def on_head(self, head: ReplyHead) -> bool:
        """The reply's head has come. False if the reply is not wanted: the connection is closed then."""

    def on_piece(self, data: bytes) -> None:
        """Bytes of the reply's body, as they came: with their chunk sizes, if it is chunked."""

    def on_end(self) -> None:
        """The reply is complete."""

    def on_lost(self, reason: str, kind: str) -> None:
        """There will be no reply, or no more of it. `kind` is one of RESET, STALE and NOT_HTTP."""

    def on_switched(self, connection: "EngineConnection", head: bytes, rest: bytes) -> None:
        """The engine has switched protocols with this head; `rest` is what came after it."""


class EngineConnection(asyncio.Protocol):
    """One connection to an engine, kept for the next request where the engine allows it.

    The body is not taken apart: a parser looks for its end, and the bytes go on as they came.
    """

    __slots__ = (
        "_feed",
        "_has_begun",
        "_head",
        "_is_done",
        "_is_extra",
        "_is_kept",
        "_left",
        "_parser",
        "_pool",
        "_receiver",
        "_tail",
        "_until_close",
        "idle_since",
        "is_paused",
        "transport",
        "was_used",
    )

    def __init__(self, pool: list["EngineConnection"]) -> None:
        self._pool = pool
        self._receiver: Receiver | None = None
        # The beginning of a head; None once the head is complete.
        self._head: bytes | None = b""
        self._is_done = False
        self._is_extra = self._is_kept = False
        self._until_close = False
        # Bytes of the body still to come, where the head tells its length; else -1.
        self._left = -1
        # The last bytes that came of a body in chunks.
        self._tail = b""
        self._has_begun = False
        self.was_used = self.is_paused = False
        self.idle_since = 0.0
        self.transport: asyncio.Transport

    def send(self, receiver: Receiver, head: bytes, body: bytes) -> None:
        """Sends a request; the connection must be idle."""
        self._receiver = receiver
        self._head = b""
        self._is_done = self._until_close = self._has_begun = False
        if len(body) < MAX_HEAD_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def leave(self) -> None:
        """Ends the connection; the receiver hears nothing more."""
        self._receiver = None
        self.transport.abort()

    def pause(self) -> None:
        """Reads nothing more of the reply for now: the engine has to wait."""
        if not self.is_paused:
            self.is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            self.transport.resume_reading()

    # Of asyncio.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            # Nobody asked: whatever this is, it is not the next reply.
            self.transport.abort()
            return
        if self._head is not None:
            self._head_received(receiver, data)
            return
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._lose(f"{error}", NOT_HTTP)
            return
        if self._left >= 0:
            self._left -= len(data)
            self._is_extra = self._left < 0
        elif not self._until_close:
            # The pieces may be as small as a byte.
            self._tail = data if len(data) > _END_BYTES else (self._tail + data)[-2 * _END_BYTES :]
            if self._is_done:
                self._is_extra = self._is_extra or not _is_one_end(self._tail)
        if self._is_extra:
            self._lose("it sent more than its reply", NOT_HTTP)
            return
        receiver.on_piece(data)
        if self._is_done:
            self._end(receiver)

    def connection_lost(self, exc: Exception | None) -> None:
        receiver = self._receiver
        if receiver is None:
            if self in self._pool:
                self._pool.remove(self)
        elif self._until_close and exc is None:
            self._receiver = None
            receiver.on_end()
        else:
            kind = STALE if self.was_used and not self._has_begun else RESET
            self._lose(str(exc or "it closed the connection"), kind)

    # Of the parser.

    def on_message_begin(self) -> None:
        if self._is_done:
            self._is_extra = True

    def on_message_complete(self) -> None:
        self._is_done = True
        # Asked here, as the parser is about to forget it.
        self._is_kept = self._parser.should_keep_alive()

    def _head_received(self, receiver: Receiver, data: bytes) -> None:
        self._has_begun = True
        whole = self._head + data if self._head else data
        while (end := whole.find(b"\r\n\r\n") + 4) >= 4:
            raw, whole = whole[:end], whole[end:]
            try:
                self._feed(raw)
            except httptools.HttpParserUpgrade:
                self._receiver = None
                receiver.on_switched(self, raw, whole)
                return
            except httptools.HttpParserError as error:
                self._lose(f"{error}", NOT_HTTP)
                return
            if not raw.startswith(_START):
                break
            status = self._parser.get_status_code()
            if status >= 200:
                self._head = None
                self._head_is_there(receiver, ReplyHead(status, raw), whole)
                return
            # An interim reply: the real one follows.
            self._is_done = False
        if end >= 4 or not whole.startswith(_START[: len(whole)]) or b"\n\n" in whole:
            self._lose("its reply does not begin as one of HTTP/1 does", NOT_HTTP)
        elif len(whole) > MAX_HEAD_BYTES:
            self._lose("the head of its reply is too large", NOT_HTTP)
        else:
            self._head = whole

    def _head_is_there(self, receiver: Receiver, head: ReplyHead, rest: bytes) -> None:
        fault = head.fault()
        if self._is_done and rest:
            fault = "it sent more than its reply"
        if fault:
            self._lose(fault, NOT_HTTP)
            return
        is_measured = not (self._is_done or head.is_chunked) and head.length >= 0
        self._left = head.length if is_measured else -1
        self._tail = b""
        self._until_close = not (self._is_done or head.is_chunked or is_measured)
        if not receiver.on_head(head):
            self.leave()
        elif rest:
            self.data_received(rest)
        elif self._is_done:
            self._end(receiver)

    def _end(self, receiver: Receiver) -> None:
        self._receiver = None
        self._tail = b""
        if self._is_kept and not self.transport.is_closing():
            # Who was too slow for this reply need not be for the next.
            self.resume()
            self.was_used = True
            self.idle_since = monotonic()
            self._pool.append(self)
        else:
            self.transport.close()
        receiver.on_end()

    def _lose(self, reason: str, kind: str) -> None:
        receiver, self._receiver = self._receiver, None
        self.transport.abort()
        if receiver is not None:
            receiver.on_lost(reason, kind)


def _is_one_end(tail: bytes) -> bool:
    """Whether a body in chunks ends with what ends it, and no line more, which the parser would pass over."""
    return tail.endswith(_END) and not tail[:-_END_BYTES].endswith((b"\r", b"\n"))


def take(pool: list[EngineConnection], now: float) -> EngineConnection | None:
    """The connection that was used last, or None if there is none that the engine surely still keeps."""
    while pool:
        connection = pool.pop()
        if now - connection.idle_since < KEEP_ALIVE_S and not connection.transport.is_closing():
            return connection
        connection.transport.close()
    return None


def close_idle(pool: list[EngineConnection], before: float) -> None:
    """Closes those that are idle since `before` (loop seconds); the longest idle ones come first."""
    count = 0
    for connection in pool:
        if connection.idle_since > before:
            break
        connection.transport.close()
        count += 1
    del pool[:count]
