"""The application of one worker: its parts, and how they hang together."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from gateway.auth import load_keys
from gateway.engines import Engines
from gateway.errors import RequestError
from gateway.front import Front
from gateway.handlers import openai_handlers, own_handlers
from gateway.live import Live
from gateway.proxy import Proxy
from gateway.record import WorkerRecord
from gateway.settings import Settings
from gateway.source import TableSource
from sage_reconcile.version import __version__

logger = logging.getLogger("gateway")


def create_app() -> Front:
    """The application of a worker process, by the environment that `python -m gateway` made."""
    return build(Settings.from_environ(os.environ))


def build(settings: Settings) -> Front:
    """The application for given settings. Raises PermanentError if the API keys cannot be read."""
    keys = load_keys(os.environ, settings.key_file)
    record = WorkerRecord(settings.home / "run" / "gateway")
    live = Live(TableSource(settings.home / "routing" / "routing.json"), record)
    engines = Engines()

    @asynccontextmanager
    async def life(_: Litestar) -> AsyncIterator[None]:
        # The record comes before the table: whoever drains sees a worker that has not loaded its table yet.
        record.write("", {})
        live.refresh()
        following = asyncio.create_task(live.follow())
        try:
            yield
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            await engines.aclose()
            record.remove()

    app = Litestar(
        route_handlers=[*openai_handlers(Proxy(live, engines, settings.body_limit)), *own_handlers(live)],
        lifespan=[life],
        openapi_config=OpenAPIConfig(
            title="sage gateway",
            version=__version__,
            description="OpenAI HTTP from the engines that the stack files describe.",
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
        ),
        exception_handlers={HTTPException: _known_fault, Exception: _unknown_fault},
        logging_config=None,
    )
    return Front(app, keys)


def _known_fault(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Faults that the framework finds: no such path, wrong method."""
    place = f"{request.method} {request.url.path}"
    messages = {
        404: f"There is nothing at {place}. GET /docs lists every path.",
        405: f"{place} is not possible with this method. GET /docs lists every path.",
    }
    message = messages.get(error.status_code, f"{place}: {error.detail}")
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return _response(RequestError(error.status_code, message, code), dict(error.headers or {}))


def _unknown_fault(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """A defect of sage: its details belong into the log, not into the reply."""
    if isinstance(error, RequestError):
        return _response(error, {})
    request_id = request.headers.get("x-request-id", "")
    logger.error("request %s failed by a defect of sage", request_id, exc_info=error)
    message = (
        f"sage failed at this request by a defect of its own; its log tells more (request {request_id})."
    )
    return _response(RequestError(500, message, "internal_error"), {})


def _response(error: RequestError, headers: dict[str, str]) -> Response[Any]:
    return Response(error.payload(), status_code=error.status, headers={**headers, **error.headers})
