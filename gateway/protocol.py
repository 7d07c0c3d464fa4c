"""How a client's connection is read: uvicorn's way, with limits to what may come before a body."""

import asyncio
import http
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import RequestError

# As much as common servers take; a long prompt is a body, never a header.
MAX_HEAD_BYTES = 64 << 10


class HeadTooLargeError(Exception):
    """Request line and headers are larger than MAX_HEAD_BYTES."""


class LimitedProtocol(HttpToolsProtocol):
    """Refuses a head that is too large (431) before it is all in memory, or not complete in time (408)."""

    # Generous for a slow line, short for a connection that somebody holds to no end.
    head_timeout_s = 60.0
    # How long a connection without a request stays open when the gateway ends.
    last_call_s = 2.0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._head_bytes = 0
        # What the parser took and has not handed on: the one thing that grows while a header has no end.
        self._kept_bytes = 0
        self._is_in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Lets the client go without a reset: it learns from an answer that there will be no other here.

        One that is just sending on an idle connection is answered, too; one that sends nothing is closed.
        """
        self._is_ending = True
        if self._is_idle():
            self.loop.call_later(self.last_call_s, self._close_if_idle)
        elif not self.cycle.response_started:
            self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        self._kept_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._kept_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        elif self._is_in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def on_message_begin(self) -> None:
        self._head_bytes = self._kept_bytes = 0
        self._is_in_head = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._kept_bytes = 0
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()
        if self._is_ending:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_ending:
            self.loop.call_later(self.last_call_s, self._close_if_idle)

    def on_body(self, body: bytes) -> None:
        self._kept_bytes = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Called when the parser gave up, also because of what a callback above raised."""
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        else:
            self._refuse(RequestError(400, "The request is not valid HTTP/1.1.", "invalid_http"))

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLargeError

    def _head_is_late(self) -> None:
        self._head_timer = None
        message = f"The request's headers were not complete within {self.head_timeout_s:g} s."
        self._refuse(RequestError(408, message, "headers_too_late"))

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: RequestError) -> None:
        """Answers, unless another answer is on its way on this connection, and ends the connection."""
        self._stop_head_timer()
        if self.cycle is None or self.cycle.response_complete:
            body = error.body()
            head = (
                f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "x-sage-src: sage\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


def _head_too_large() -> RequestError:
    message = f"The request line and headers are larger than {MAX_HEAD_BYTES >> 10} KiB."
    return RequestError(431, message, "headers_too_large")
