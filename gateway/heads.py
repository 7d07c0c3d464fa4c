"""Heads of requests and replies as bytes: what engines get of a client's head, and clients of an engine's."""

import itertools
import os
import re
from collections.abc import Iterable
from http import HTTPStatus

Headers = list[tuple[bytes, bytes]]

# RFC 9110 section 7.6.1, and the older names that still occur.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# The client's credentials are for the gateway, never for an engine.
CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key", b"cookie"})
# Set anew for the engine: its own host, the length of the body as sent, the request's id, the trace.
RENEWED = frozenset({b"host", b"content-length", b"expect", b"x-request-id"})
# What h2c upgrades bring along; the connection to the engine is another one.
_UPGRADING = frozenset({b"http2-settings"})
TO_ENGINE_DROPPED = HOP_BY_HOP | CREDENTIALS | RENEWED | _UPGRADING

_TO_CLIENT_DROPPED = HOP_BY_HOP - {b"transfer-encoding"} | {b"x-request-id", b"x-sage-src"}
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
# Every line of a lower-case head that matters to the gateway, found in one pass.
_SPECIAL = re.compile(
    rb"\n(content-length|transfer-encoding|%b):[ \t]*([^\r]*?)[ \t]*\r"
    % b"|".join(sorted(_TO_CLIENT_DROPPED))
)

_REQUEST_ID = re.compile(rb"[!-~]{1,200}")
_ID_START = os.urandom(8).hex().encode()
_ID_NUMBERS = itertools.count()

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
STATUS_LINES = {
    status: f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode() for status in range(100, 600)
}


def get(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first value of a header, or b""; names are in lower case."""
    for key, value in headers:
        if key == name:
            return value
    return b""


def new_request_id() -> bytes:
    """An id that no other request of this or another worker has."""
    return b"%b%012x" % (_ID_START, next(_ID_NUMBERS))


def is_request_id(given: bytes) -> bool:
    """Whether a client's X-Request-ID is a plain token, and so may be passed on."""
    return _REQUEST_ID.fullmatch(given) is not None


def to_engine(headers: Headers, connection: bytes, trace: bytes = b"") -> bytes:
    """The lines of the client's head that an engine gets. `connection` is the client's header of this name,
    or b"": what it names is for the gateway alone. `trace` is the traceparent that stands for the client's,
    or b""."""
    dropped = TO_ENGINE_DROPPED | {b"traceparent"} if trace else TO_ENGINE_DROPPED
    if connection:
        dropped = dropped | {token.strip().lower() for token in connection.split(b",")}
    lines = b"".join([b"%b: %b\r\n" % pair for pair in headers if pair[0] not in dropped])
    return b"%btraceparent: %b\r\n" % (lines, trace) if trace else lines


def size(target: bytes, headers: Headers) -> int:
    """Bytes of a request's head, about."""
    return len(target) + sum(len(name) + len(value) for name, value in headers)


def without_upgrade(method: bytes, target: bytes, headers: Headers) -> bytes:
    """The head of a request as it came, without the wish to switch protocols. A parser has read it before."""
    lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0] != b"upgrade"]
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, b"".join(lines))


class ReplyHead:
    """The head of an engine's reply. `raw` ends with the empty line; it has passed a strict parser.

    `length` is the announced size of the body in bytes, -1 where none is announced. A reply that is neither
    `is_chunked` nor has a length goes on until the engine closes the connection.
    """

    __slots__ = ("_is_plain", "is_chunked", "length", "lower", "raw", "status")

    def __init__(self, status: int, raw: bytes) -> None:
        self.status = status
        self.raw = raw
        self.lower = lower = raw.lower()
        self.is_chunked = False
        self.length = -1
        # Whether there is nothing in it that must not go on to a client.
        self._is_plain = raw.startswith(b"HTTP/1.1 ")
        for name, value in _SPECIAL.findall(lower):
            if name == b"content-length":
                self.length = int(value)
            elif name == b"transfer-encoding":
                self.is_chunked = value == b"chunked"
            else:
                self._is_plain = False

    @property
    def is_event_stream(self) -> bool:
        """Whether an event may be added to the reply: server-sent events, neither packed nor measured."""
        return (
            b"\ncontent-type:" in self.lower
            and b"text/event-stream" in self.lower
            and b"\ncontent-encoding:" not in self.lower
            and self.is_chunked
        )

    def fault(self) -> str:
        """Why this cannot be passed on as HTTP, or ""."""
        if not 200 <= self.status <= 599:
            return f"its status is {self.status}"
        if not self.is_chunked and b"\ntransfer-encoding:" in self.lower:
            return "its transfer-encoding is not chunked"
        return ""

    def to_client(self, added: bytes, is_chunked_known: bool) -> bytes:
        """The head as the client gets it: without what is between gateway and engine, with `added` lines.

        `is_chunked_known` is false for an HTTP/1.0 client, to whom the body goes without chunks.
        """
        if is_chunked_known and self._is_plain:
            return b"".join((self.raw[:-2], added, b"\r\n"))
        return self._rebuilt(added, is_chunked_known)

    def _rebuilt(self, added: bytes, is_chunked_known: bool) -> bytes:
        pairs = [line.split(b":", 1) for line in self.raw[:-4].split(b"\r\n")[1:]]
        dropped = _TO_CLIENT_DROPPED if is_chunked_known else _TO_CLIENT_DROPPED | {b"transfer-encoding"}
        for name, value in pairs:
            if name.lower() == b"connection":
                named = {token.strip().lower() for token in value.split(b",")}
                # The body goes on as it is, and so must what tells its end.
                dropped = dropped | (named - _FRAMING)
        kept = [b"%b:%b\r\n" % (name, value) for name, value in pairs if name.lower() not in dropped]
        return b"".join([STATUS_LINES[self.status], *kept, added, b"\r\n"])


def of_error(status: int, headers: Iterable[tuple[str, str]], body: bytes, added: bytes) -> bytes:
    """The head of a reply that sage itself gives."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n" % (
        STATUS_LINES[status],
        len(body),
        lines.encode(),
        added,
    )
