"""The paths of the gateway. What goes to an engine is one list; the rest the gateway answers itself."""

import os
from typing import Any

from litestar import HttpMethod, MediaType, Request, Response, get, route
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ASGIApp

from gateway.docs_page import docs_page
from gateway.errors import unknown_model
from gateway.live import Live
from gateway.proxy import Proxy
from sage_reconcile.model.routing import Route
from sage_reconcile.version import __version__

AnyRequest = Request[Any, Any, State]

# Path -> what it does. Every one passes on unchanged; an engine that does not offer it says so itself.
ENGINE_PATHS = {
    "/v1/chat/completions": "Chat completion",
    "/v1/completions": "Text completion",
    "/v1/embeddings": "Embeddings",
    "/v1/responses": "Responses API",
    "/v1/messages": "Anthropic Messages API",
    "/v1/messages/count_tokens": "Tokens of a Messages request",
    "/v1/rerank": "Order documents by relevance",
    "/rerank": "Order documents by relevance",
    "/v2/rerank": "Order documents by relevance",
    "/v1/score": "Similarity of texts",
    "/score": "Similarity of texts",
    "/pooling": "Hidden states of a pooling model",
    "/classify": "Classification",
    "/tokenize": "Text to token ids",
    "/detokenize": "Token ids to text",
    "/v1/audio/transcriptions": "Speech to text (multipart form)",
    "/v1/audio/translations": "Speech to English text (multipart form)",
    "/v1/audio/speech": "Text to speech",
}


def openai_handlers(proxy: Proxy) -> list[HTTPRouteHandler]:
    """One handler for each path that engines answer. No patterns: engines have paths that nobody may ask."""
    return [_engine_handler(path, summary, proxy) for path, summary in ENGINE_PATHS.items()]


def _engine_handler(path: str, summary: str, proxy: Proxy) -> HTTPRouteHandler:
    to_path = proxy.to(path)
    answers = {
        200: ResponseSpec(None, description="What the engine answers", generate_examples=False),
        404: ResponseSpec(None, description="The model is not served here", generate_examples=False),
        503: ResponseSpec(None, description="No engine of the model was ready", generate_examples=False),
    }

    @route(
        path,
        http_method=[HttpMethod.POST],
        status_code=200,
        summary=summary,
        operation_id=path.strip("/").replace("/", "_"),
        description="Passed on byte for byte to an engine of the `model` that the body names.",
        responses=answers,
    )
    async def to_engine() -> ASGIApp:
        return to_path

    return to_engine


def own_handlers(live: Live) -> list[HTTPRouteHandler]:
    """What the gateway answers itself."""

    @get("/v1/models", summary="Every model name that is served, aliases included")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(live, known) for known in live.routes.values()]}

    @get("/v1/models/{name:path}", summary="One model name")
    async def model(name: str) -> dict[str, Any]:
        wanted = name.removeprefix("/")
        if wanted not in live.routes:
            raise unknown_model(wanted, live.routes)
        return _model(live, live.routes[wanted])

    @get("/health", summary="The gateway's process lives")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "service": "sage-gateway", "version": __version__, "pid": os.getpid()}

    @get("/ready", summary="Whether at least one model can be answered")
    async def ready() -> Response[dict[str, Any]]:
        routes = {known.name: _counts(live, known) for known in live.routes.values()}
        is_ready = any(counts["ready"] for counts in routes.values())
        body = {
            "ready": is_ready,
            "routes": routes,
            "in_flight": live.in_flight.total(),
            "held": live.held,
            "table": {"digest": live.source.digest, "fault": live.source.fault or None},
            "backend_faults": live.faults,
        }
        return Response(body, status_code=200 if is_ready else 503)

    @get("/docs", media_type=MediaType.HTML, summary="This list", include_in_schema=False)
    async def docs(request: AnyRequest) -> str:
        return docs_page(request.app.openapi_schema.to_schema())

    return [models, model, health, ready, docs]


def _model(live: Live, known: Route) -> dict[str, Any]:
    return {
        "id": known.name,
        "object": "model",
        "created": live.source.loaded_at,
        "owned_by": "sage",
        "kind": known.kind,
        "ready": len(live.ready(known)),
        "metadata": dict(known.metadata),
    }


def _counts(live: Live, known: Route) -> dict[str, int]:
    states = [live.backends[backend_id].state for backend_id in known.backends]
    return {
        "ready": len(live.ready(known)),
        "pending": states.count("pending"),
        "draining": states.count("draining"),
        "in_flight": sum(live.in_flight.get(backend_id, 0) for backend_id in known.backends),
    }
