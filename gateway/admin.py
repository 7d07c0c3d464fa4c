"""What operators ask the gateway: metrics for scrapers, numbers and policies for administrators."""

import asyncio
from typing import Any, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler

from gateway.described import errors
from gateway.errors import RequestError
from gateway.exposition import Extra, exposition
from gateway.lane import Lane
from gateway.line import POLICIES
from gateway.summary import summary

AnyRequest = Request[Any, Any, State]
# "stack" gives the lines back to what the stack file says.
OF_STACK = "stack"
Policy = Literal["fifo", "priority", "slo_aware", "cost_optimized", "adaptive", "hybrid", "stack"]


class SetPolicy(msgspec.Struct, forbid_unknown_fields=True):
    """Who of the waiting is next, for every model; `stack`: as the stack file says."""

    policy: Policy


def admin_handlers(lane: Lane) -> list[HTTPRouteHandler]:
    """All of them. Which keys they ask for is decided by their paths, in keys.py."""

    @get("/metrics", summary="Metrics for Prometheus, of all workers", media_type="text/plain")
    async def metrics(request: AnyRequest) -> Response[bytes]:
        source, plans = lane.source, lane.fleet.plans
        ready = {name: len(plan.ready) for name, plan in plans.items()}
        extra = Extra(source.digest, source.loaded_at, bool(source.fault), ready)
        total = lane.accounts.snapshots.total(lane.time())
        body, kind = await asyncio.to_thread(exposition, total, extra, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": kind})

    @get(
        "/admin/metrics",
        summary="Requests, latencies and lines by model, as JSON",
        responses=errors(401, 403),
    )
    async def numbers() -> dict[str, Any]:
        policies = {name: plan.pool.line.effective for name, plan in lane.fleet.plans.items()}
        told = summary(lane.accounts.snapshots.total(lane.time()), policies)
        return {"policy": lane.fleet.queue_policy or OF_STACK, **told}

    @post(
        "/admin/set_policy",
        status_code=200,
        summary="Sets who of the waiting is next, for every model",
        # Of the framework, while it reads the body.
        exception_handlers={RecursionError: not_json, UnicodeDecodeError: not_json},
        responses=errors(400, 401, 403),
    )
    async def set_policy(data: SetPolicy) -> dict[str, Any]:
        lane.set_queue_policy("" if data.policy == OF_STACK else data.policy)
        return {"policy": data.policy, "policies": [*POLICIES, OF_STACK]}

    return [metrics, numbers, set_policy]


def not_json(_: AnyRequest, error: Exception) -> Response[Any]:
    """400 for a body that the framework could not read."""
    why = "it is nested too deeply" if isinstance(error, RecursionError) else f"it is not UTF-8: {error}"
    fault = RequestError(400, f"The request body is not valid JSON: {why}.", "invalid_json")
    return Response(fault.payload(), status_code=fault.status)
