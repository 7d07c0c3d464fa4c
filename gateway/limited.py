"""What a client's connection may take before there is a request: uvicorn's protocol, with limits."""

import asyncio
from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway import heads
from gateway.errors import RequestError, head_too_large

# As much as common servers take; a long prompt is a body, never a header.
MAX_HEAD_BYTES = 64 << 10
# Each costs more than its bytes, here and at an engine.
MAX_HEADERS = 512
# What must come of a body within `read_timeout_s`, or else it comes too slowly.
MIN_PROGRESS_BYTES = 1 << 10


class HeadTooLargeError(Exception):
    """Request line and headers are larger than MAX_HEAD_BYTES, or more than MAX_HEADERS."""


class LimitedProtocol(HttpToolsProtocol):
    """Refuses a head that is too large (431) before it is all in memory, and a request that stands still
    before it is complete (408). What is read is counted by the class that reads it."""

    # Generous for a slow line, short for a connection that somebody holds to no end.
    read_timeout_s = 60.0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # Of uvicorn; an exchange has all that is asked of a cycle.
        self.cycle: Any
        self.pipeline: deque[tuple[Any, Any]]
        # What the parser took and has not handed on: the one thing that grows while a header has no end.
        self.kept_bytes = 0
        self.body_bytes = 0
        self.is_in_request = True
        self._body_bytes_before = 0
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_read_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_read_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called when the parser gave up, also because of what a callback raised."""
        if self.kept_bytes > MAX_HEAD_BYTES:
            self.refuse(head_too_large(MAX_HEAD_BYTES, MAX_HEADERS))
        else:
            self.refuse(RequestError(400, "The request is not valid HTTP/1.1.", "invalid_http"))

    def check_head(self) -> None:
        """Raises HeadTooLargeError if the head that is complete is too large. The body begins now."""
        if len(self.headers) > MAX_HEADERS or (
            self.kept_bytes > MAX_HEAD_BYTES and heads.size(self.url, self.headers) > MAX_HEAD_BYTES
        ):
            self.kept_bytes = MAX_HEAD_BYTES + 1
            raise HeadTooLargeError
        self.kept_bytes = self.body_bytes = self._body_bytes_before = 0

    def check_progress(self) -> None:
        """Refuses what grows without an end, and has an eye on what is not complete."""
        if self.kept_bytes > MAX_HEAD_BYTES:
            self.refuse(head_too_large(MAX_HEAD_BYTES, MAX_HEADERS))
        elif self.is_in_request and self._read_timer is None:
            self._start_read_timer()

    def stop_read_timer(self) -> None:
        """The request is complete, or there will be none."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def refuse(self, error: RequestError) -> None:
        """Answers, unless another answer is on its way on this connection, and ends the connection."""
        self.stop_read_timer()
        is_free = self.cycle is None or self.cycle.response_complete
        if is_free and not self.transport.is_closing():
            body = error.body()
            added = b"x-sage-src: sage\r\nconnection: close\r\n"
            self.transport.write(heads.of_error(error.status, (), body, added) + body)
        self.transport.close()

    def _start_read_timer(self) -> None:
        self._read_timer = self.loop.call_later(self.read_timeout_s, self._look_for_progress)

    def _look_for_progress(self) -> None:
        self._read_timer = None
        # It may be the gateway that does not read on.
        if self.flow.read_paused or self.body_bytes - self._body_bytes_before >= MIN_PROGRESS_BYTES:
            self._body_bytes_before = self.body_bytes
            self._start_read_timer()
            return
        message = f"The request was not complete, and too little of it came within {self.read_timeout_s:g} s."
        self.refuse(RequestError(408, message, "request_too_slow"))


class Deaf:
    """A parser for what nobody listens to any more."""

    def feed_data(self, data: bytes) -> None:
        pass
