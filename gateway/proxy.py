"""One request to an engine and back: routed, held, retried before the first byte, streamed."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from gateway import body as request_body
from gateway import headers as passing
from gateway.engines import EngineReply, EngineRequest, Engines, LostError, NotReachedError
from gateway.errors import RequestError, bad_reply, engine_lost, no_backend, stream_broken
from gateway.live import Live
from gateway.settings import MAX_BODY_MIB
from sage_reconcile.model.routing import Backend, Route

logger = logging.getLogger("gateway")

# A request that breaks engines must not go through all of them, one after another.
MAX_SENDS = 3
# How long a request waits before it tries again a backend that did not take the connection.
RETRY_S = 0.5


class ClientGoneError(Exception):
    """The client left before its request was complete."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a client, complete."""

    method: str
    target: bytes
    headers: passing.Headers
    content_type: bytes
    request_id: bytes
    model: str
    body: bytes

    def to(self, backend: Backend, authorization: bytes) -> EngineRequest:
        same = self.model == backend.model
        body = self.body if same else request_body.with_model(self.body, self.content_type, backend.model)
        headers = passing.to_engine(self.headers, self.request_id, authorization)
        return EngineRequest(self.method, backend.url, self.target, headers, body)


class Proxy:
    """Answers with what an engine of the asked model answers. `body_limit` in bytes."""

    def __init__(self, live: Live, engines: Engines, body_limit: int) -> None:
        self._live = live
        self._engines = engines
        self._body_limit = body_limit

    def to(self, path: str) -> ASGIApp:
        """The ASGI application for one path: engines are asked for it, however the client wrote it."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(path, cast(HTTPScope, scope), receive, send)

        return serve

    async def _serve(self, path: str, scope: HTTPScope, receive: Receive, send: Send) -> None:
        try:
            call = await self._read(path, scope, receive)
        except ClientGoneError:
            return
        except RequestError as error:
            await error.send_to(send)
            return
        answer = asyncio.create_task(self._answer(call, send))
        leave = asyncio.create_task(_client_leaves(receive))
        try:
            await asyncio.wait({answer, leave}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Whoever is still running has lost its reason; cancelling the answer also ends the engine's work.
            leave.cancel()
            if not answer.done():
                answer.cancel()
            await asyncio.wait({answer, leave})
        if not answer.cancelled():
            answer.result()

    async def _read(self, path: str, scope: HTTPScope, receive: Receive) -> Call:
        headers = list(scope["headers"])
        content_type = passing.get(headers, b"content-type")
        encoding = passing.get(headers, b"content-encoding")
        if encoding not in (b"", b"identity"):
            message = f"Request bodies with content-encoding {encoding.decode('latin-1')} are not taken."
            raise RequestError(415, message, "unsupported_encoding")
        body = await self._read_body(headers, receive)
        query = scope["query_string"]
        return Call(
            method=str(scope["method"]),
            target=path.encode() + (b"?" + query if query else b""),
            headers=headers,
            content_type=content_type,
            request_id=passing.get(headers, b"x-request-id"),
            model=request_body.model_of(body, content_type),
            body=body,
        )

    async def _read_body(self, headers: passing.Headers, receive: Receive) -> bytes:
        announced = passing.get(headers, b"content-length")
        size = int(announced) if announced.isdigit() else 0
        chunks: list[bytes] = []
        read = 0
        while size <= self._body_limit and read <= self._body_limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            assert message["type"] == "http.request"
            chunks.append(message["body"])
            read += len(message["body"])
            if not message["more_body"] and read <= self._body_limit:
                return b"".join(chunks)
        fault = f"The request body is larger than {self._body_limit >> 20} MiB"
        text = f"{fault}: send less, or start the gateway with a higher {MAX_BODY_MIB} in its environment."
        raise RequestError(413, text, "body_too_large")

    async def _answer(self, call: Call, send: Send) -> None:
        try:
            async with self._reply(call) as reply:
                if fault := passing.fault_of_reply(reply.status, reply.headers):
                    raise bad_reply(call.model, fault)
                await _relay(call, reply, send)
        except RequestError as error:
            await error.send_to(send)

    @asynccontextmanager
    async def _reply(self, call: Call) -> AsyncIterator[EngineReply]:
        """The reply of the first engine that gives one. Raises RequestError when none does."""
        started = asyncio.get_running_loop().time()
        failed: set[str] = set()
        sends, reason = 0, ""
        while True:
            route = self._live.route(call.model)
            backend = self._live.choose(route, failed)
            if backend is None:
                await self._hold(route, started, reason)
                failed.clear()
                continue
            with self._live.counted(backend):
                try:
                    reply = await self._engines.send(call.to(backend, self._live.authorization(backend)))
                except NotReachedError as error:
                    reason = f"{backend.engine}#{backend.replica}: {error}"
                except LostError as error:
                    reason = f"{backend.engine}#{backend.replica}: {error}"
                    sends += 1
                    if sends >= MAX_SENDS:
                        raise engine_lost(call.model, sends, reason) from error
                else:
                    try:
                        yield reply
                    finally:
                        await reply.aclose()
                    return
            failed.add(backend.id)
            logger.warning("%s for request %s", reason, call.request_id.decode())

    async def _hold(self, route: Route, started: float, reason: str) -> None:
        """Waits until there may be a backend. Raises RequestError (503) when the hold time is over."""
        left = started + route.hold - asyncio.get_running_loop().time()
        if left <= 0:
            faults = [self._live.faults[known] for known in route.backends if known in self._live.faults]
            raise no_backend(route.name, route.hold, reason or "; ".join(faults))
        await self._live.wait_for_change(min(left, RETRY_S))


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _relay(call: Call, reply: EngineReply, send: Send) -> None:
    """Passes the reply on, chunk by chunk. After its first byte, nothing can be retried any more."""
    await send(
        {"type": "http.response.start", "status": reply.status, "headers": passing.to_client(reply.headers)}
    )
    tail = b"\n\n"
    try:
        async for chunk in reply.chunks():
            tail = (tail + chunk)[-4:]
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except LostError as error:
        logger.warning(
            "request %s: the engine was lost while it answered: %s", call.request_id.decode(), error
        )
        if not _is_plain_event_stream(reply):
            # No way to say it in the body: uvicorn breaks the connection of an answer that was not completed.
            return
        gap = b"" if tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
        event = gap + b"data: " + stream_broken(call.model, str(error)).body() + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_plain_event_stream(reply: EngineReply) -> bool:
    kind = passing.get(reply.headers, b"content-type")
    encoding = passing.get(reply.headers, b"content-encoding")
    sized = passing.get(reply.headers, b"content-length")
    return kind.startswith(b"text/event-stream") and encoding in (b"", b"identity") and not sized
