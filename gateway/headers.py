"""Which headers pass through the gateway, by written lists."""

import re
import uuid
from collections.abc import Iterable

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
# Set anew for the engine: its own host, the length of the body as sent, the request's id.
RENEWED = frozenset({b"host", b"content-length", b"expect", b"x-request-id"})
_TO_ENGINE_DROPPED = HOP_BY_HOP | CREDENTIALS | RENEWED
_TO_CLIENT_DROPPED = HOP_BY_HOP | {b"x-request-id", b"x-sage-src"}

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_REQUEST_ID = re.compile(rb"[!-~]{1,200}")


def get(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first value of a header, or b""; `name` in lower case."""
    return next((value for key, value in headers if key.lower() == name), b"")


def to_engine(headers: Headers, request_id: bytes, authorization: bytes) -> Headers:
    """What the engine gets of the client's headers; `authorization` is the backend's own, or b""."""
    kept = _without(headers, _TO_ENGINE_DROPPED)
    kept.append((b"x-request-id", request_id))
    if authorization:
        kept.append((b"authorization", authorization))
    return kept


def to_client(headers: Headers) -> Headers:
    """What the client gets of the engine's headers, said to be the engine's."""
    return [*_without(headers, _TO_CLIENT_DROPPED), (b"x-sage-src", b"engine")]


def fault_of_reply(status: int, headers: Headers) -> str:
    """Why an engine's reply cannot be passed on as HTTP, or ""."""
    if not 200 <= status <= 599:
        return f"its status is {status}"
    broken = next((name for name, value in headers if _CONTROL.search(value)), None)
    return f"its header {broken.decode('latin-1')} holds a control character" if broken is not None else ""


def request_id(headers: Headers) -> bytes:
    """The client's X-Request-ID if it is a plain token, else a new one."""
    given = get(headers, b"x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()


def _without(headers: Headers, dropped: frozenset[bytes]) -> Headers:
    named = {
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    return [
        (lower, value)
        for name, value in headers
        if (lower := name.lower()) not in dropped and lower not in named
    ]
