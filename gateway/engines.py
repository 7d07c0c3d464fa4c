"""The connections to the engines: one request in, the reply's bytes out as they arrive, unchanged."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

from gateway.headers import Headers

CONNECT_TIMEOUT_S = 5.0
# Engines under uvicorn close idle connections after 5 s: ours go first, lest one is closed under a request.
KEEP_ALIVE_S = 4.0
KEPT_CONNECTIONS = 1000
# A generation may take as long as it takes; the client ends it by leaving.
_TIMEOUTS = {"connect": CONNECT_TIMEOUT_S, "read": None, "write": None, "pool": None}


class NotReachedError(Exception):
    """The engine did not take the connection: nothing of the request was sent."""


class LostError(Exception):
    """The engine took the request and broke the connection."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What goes to an engine. `target` is a path of the gateway's list, with the client's query string."""

    method: str
    url: str
    target: bytes
    headers: Headers
    body: bytes


class EngineReply:
    """An engine's reply from its first byte on; `aclose` gives the connection back, or breaks it."""

    def __init__(self, response: httpx.Response, chunks: AsyncIterator[bytes], first: bytes) -> None:
        self.status = response.status_code
        self.headers: Headers = response.headers.raw
        self._response = response
        self._chunks = chunks
        self._first = first

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises LostError if the engine breaks off."""
        if self._first:
            yield self._first
        try:
            async for chunk in self._chunks:
                yield chunk
        except httpx.TransportError as error:
            raise LostError(_words(error)) from error

    async def aclose(self) -> None:
        await self._response.aclose()


class Engines:
    """The pool of connections of one worker."""

    def __init__(self) -> None:
        limits = httpx.Limits(
            max_connections=None,
            max_keepalive_connections=KEPT_CONNECTIONS,
            keepalive_expiry=KEEP_ALIVE_S,
        )
        # The transport and not the client: no cookies, no redirects, no proxies, no headers of its own.
        self._transport = httpx.AsyncHTTPTransport(limits=limits)

    async def send(self, request: EngineRequest) -> EngineReply:
        """Sends a request and waits for the first byte of the reply's body.

        Raises NotReachedError (safe to send elsewhere) and LostError (the engine may have worked on it).
        """
        try:
            url = httpx.URL(request.url)
            # An external backend's url may carry a path of its own.
            url = url.copy_with(raw_path=url.raw_path.rstrip(b"/") + request.target)
            wire = httpx.Request(request.method, url, headers=request.headers, content=request.body)
        except httpx.InvalidURL as error:
            raise NotReachedError(f"its url is not valid: {error}") from error
        wire.extensions["timeout"] = _TIMEOUTS
        try:
            response = await self._transport.handle_async_request(wire)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise NotReachedError(_words(error)) from error
        except httpx.TransportError as error:
            raise LostError(_words(error)) from error
        return await _first_byte(response)

    async def aclose(self) -> None:
        await self._transport.aclose()


async def _first_byte(response: httpx.Response) -> EngineReply:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    chunks = aiter(response.stream)
    try:
        first = await anext(chunks, b"")
    except httpx.TransportError as error:
        await response.aclose()
        raise LostError(_words(error)) from error
    except BaseException:
        await response.aclose()
        raise
    return EngineReply(response, chunks, first)


def _words(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
