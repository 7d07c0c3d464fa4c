"""The paths of the gateway. What goes to an engine is one list; the rest the gateway answers itself."""

import os
from typing import Any

from litestar import HttpMethod, MediaType, Request, Response, get, route
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec

from gateway.described import FormToEngine, JsonToEngine, errors
from gateway.docs_page import docs_page
from gateway.errors import RequestError, unknown_model
from gateway.fleet import Plan
from gateway.keys import open_names
from gateway.lane import Lane
from gateway.paths import ENGINE_PATHS, FORM_PATHS
from sage_reconcile.version import __version__

AnyRequest = Request[Any, Any, State]


def engine_handlers() -> list[HTTPRouteHandler]:
    """What the OpenAPI description tells of the paths that engines answer, and the 405 for other methods."""
    return [_engine_handler(path, summary) for path, summary in ENGINE_PATHS.items()]


def _engine_handler(path: str, summary: str) -> HTTPRouteHandler:
    answered = ResponseSpec(None, description="What the engine answers", generate_examples=False)

    @route(
        path,
        http_method=[HttpMethod.POST],
        status_code=200,
        summary=summary,
        operation_id=path.strip("/").replace("/", "_"),
        description="Passed on byte for byte to an engine of the `model` that the body names.",
        operation_class=FormToEngine if path in FORM_PATHS else JsonToEngine,
        responses={200: answered, **errors(400, 401, 403, 404, 413, 415, 429, 502, 503, 504)},
    )
    async def to_engine() -> None:
        raise RequestError(500, f"{path} was not taken by the lane of requests to engines.", "internal_error")

    return to_engine


def own_handlers(lane: Lane) -> list[HTTPRouteHandler]:
    """What the gateway answers itself."""

    @get(
        "/v1/models",
        summary="Every model name that the key may use, aliases included",
        responses=errors(401),
    )
    async def models(request: AnyRequest) -> dict[str, Any]:
        names = open_names(lane.fleet.plans, request.scope["state"].get("key"))
        return {"object": "list", "data": [_model(lane, lane.fleet.plans[name]) for name in names]}

    @get("/v1/models/{name:path}", summary="One model name", responses=errors(400, 401, 404))
    async def model(request: AnyRequest, name: str) -> dict[str, Any]:
        wanted = name.removeprefix("/")
        names = open_names(lane.fleet.plans, request.scope["state"].get("key"))
        if wanted not in names:
            raise unknown_model(wanted, names)
        return _model(lane, lane.fleet.plans[wanted])

    @get("/health", summary="The gateway's process lives")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "service": "sage-gateway", "version": __version__, "pid": os.getpid()}

    @get("/ready", summary="Whether at least one model can be answered")
    async def ready() -> Response[dict[str, Any]]:
        plans, members = lane.fleet.plans, lane.fleet.members.values()
        is_ready = any(plan.ready for plan in plans.values())
        body = {
            "ready": is_ready,
            "routes": {name: _counts(plan) for name, plan in plans.items()},
            "in_flight": sum(member.in_flight for member in members),
            "held": len(lane.waiting.held),
            "queued": sum(len(pool.line) for pool in lane.fleet.pools),
            "queue_policy": lane.fleet.queue_policy or None,
            "table": {"digest": lane.source.digest, "fault": lane.source.fault or None},
            "backend_faults": {member.id: member.fault for member in members if member.fault},
        }
        return Response(body, status_code=200 if is_ready else 503)

    @get("/docs", media_type=MediaType.HTML, summary="This list", include_in_schema=False)
    async def docs(request: AnyRequest) -> str:
        return docs_page(request.app.openapi_schema.to_schema())

    return [models, model, health, ready, docs]


def _model(lane: Lane, plan: Plan) -> dict[str, Any]:
    known = plan.route
    return {
        "id": known.name,
        "object": "model",
        "created": lane.source.loaded_at,
        "owned_by": "sage",
        "kind": known.kind,
        "ready": len(plan.ready),
        "metadata": dict(known.metadata),
    }


def _counts(plan: Plan) -> dict[str, int]:
    members = plan.pool.members
    states = [member.backend.state for member in members]
    return {
        "ready": len(plan.ready),
        "pending": states.count("pending"),
        "draining": states.count("draining"),
        "in_flight": sum(member.in_flight for member in members),
    }
