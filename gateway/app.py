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

from gateway.admin import admin_handlers
from gateway.errors import RequestError, internal_error, shown
from gateway.front import Front
from gateway.handlers import engine_handlers, own_handlers
from gateway.keys import load_keys
from gateway.lane import Lane
from gateway.sessions.handlers import session_handlers
from gateway.settings import Settings
from sage_reconcile.version import __version__

logger = logging.getLogger("gateway")


def create_app() -> Front:
    """The application of a worker process, by the environment that `python -m gateway` made."""
    return build(Settings.from_environ(os.environ))


def build(settings: Settings) -> Front:
    """The application for given settings. Raises PermanentError if the API keys cannot be read."""
    lane = Lane(settings, load_keys(os.environ, settings.key_file, settings.workers))

    @asynccontextmanager
    async def life(_: Litestar) -> AsyncIterator[None]:
        lane.open()
        following = asyncio.create_task(lane.follow())
        try:
            yield
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            await lane.close()

    app = Litestar(
        route_handlers=[
            *engine_handlers(),
            *own_handlers(lane),
            *admin_handlers(lane),
            *session_handlers(lane),
        ],
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
    return Front(app, lane)


def _known_fault(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Faults that the framework finds: no such path, wrong method."""
    place = f"{request.method} {shown(request.url.path)}"
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
    return _response(internal_error(request_id), {})


def _response(error: RequestError, headers: dict[str, str]) -> Response[Any]:
    return Response(error.payload(), status_code=error.status, headers={**headers, **error.headers})
