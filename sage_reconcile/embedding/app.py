"""The HTTP face of the embedding service: a Litestar application."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler

from sage_reconcile.embedding.batching import EncodingError, QueueFullError
from sage_reconcile.embedding.service import EmbeddingService
from sage_reconcile.embedding.wire import RequestError, render_error

MAX_BODY_BYTES = 64 * 1024 * 1024
# What proxies write for a client that left; nobody reads it, but it is counted.
CLIENT_CLOSED_REQUEST = 499

HttpRequest = Request[Any, Any, Any]


def create_app(service: EmbeddingService) -> Litestar:
    """The application; it starts and ends the service's worker."""

    @post("/v1/embeddings", status_code=200)
    async def embeddings(request: HttpRequest) -> Response[bytes]:
        service.metrics.request_started()
        status = 500
        try:
            response = await _answer(service, request)
            status = response.status_code or 200
            return response
        finally:
            service.metrics.request_ended(status)

    @contextlib.asynccontextmanager
    async def worker(app: Litestar) -> AsyncIterator[None]:
        service.batcher.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.batcher.close)

    return Litestar(
        route_handlers=[embeddings, *_about(service)],
        lifespan=[worker],
        exception_handlers={HTTPException: _http_error},
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=None,
        logging_config=None,
    )


def _about(service: EmbeddingService) -> list[HTTPRouteHandler]:
    """What the service says of itself."""
    started = int(time.time())

    @get("/v1/models")
    async def models() -> Response[bytes]:
        about = {
            "object": "model",
            "created": started,
            "owned_by": "sage",
            "max_model_len": service.embedder.max_length,
        }
        return _json(
            msgspec.json.encode({"object": "list", "data": [{"id": name, **about} for name in service.names]})
        )

    @get("/health")
    async def health() -> Response[bytes]:
        trouble = service.batcher.trouble
        if trouble:
            return _json(
                render_error(503, f"{service.names[0]} cannot answer: {trouble}; restart this engine"), 503
            )
        return _json(msgspec.json.encode({"status": "ok", "model": service.names[0]}))

    @get("/metrics")
    async def metrics() -> Response[str]:
        text = service.metrics.render(service.batcher.queued_inputs)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return [models, health, metrics]


async def _answer(service: EmbeddingService, request: HttpRequest) -> Response[bytes]:
    try:
        body = await request.body()
        reply = await _unless_gone(request, asyncio.ensure_future(service.embed(body)))
    except HTTPException as error:
        return _http_error(request, error)
    except RequestError as error:
        return _json(render_error(error.status, str(error), error.param, error.code), error.status)
    except QueueFullError as error:
        message = f"{service.names[0]} is busy: {error}; try again in {math.ceil(error.delay)} s"
        headers = {"retry-after": str(math.ceil(error.delay))}
        return _json(render_error(429, message, code="queue_full"), 429, headers)
    except EncodingError as error:
        return _json(render_error(500, f"{service.names[0]}: {error}"), 500)
    if reply is None:
        return _json(render_error(CLIENT_CLOSED_REQUEST, "the client left"), CLIENT_CLOSED_REQUEST)
    return _json(reply)


async def _unless_gone(request: HttpRequest, answer: "asyncio.Future[bytes]") -> bytes | None:
    """The answer; or None, with the work called off, when the client leaves before."""
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        tasks: set[asyncio.Future[Any]] = {answer, gone}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return await answer if answer.done() else None
    finally:
        for task in (answer, gone):
            task.cancel()


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _http_error(request: HttpRequest, error: HTTPException) -> Response[bytes]:
    """What the framework itself refuses: an unknown path, a method, a body that is too large."""
    where = f"{request.method} {request.url.path}"
    return _json(render_error(error.status_code, f"{where}: {error.detail}"), error.status_code)
