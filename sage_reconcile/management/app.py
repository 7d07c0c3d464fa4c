"""The routes of the management API, thin over the control-plane classes."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
from litestar import Litestar, Request, Response, delete, get, post
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import ServerSentEvent, ServerSentEventMessage

from sage_reconcile import adhoc
from sage_reconcile.control.edits import Work
from sage_reconcile.control.engines import EngineLifecycleManager
from sage_reconcile.control.entries import EngineOptions
from sage_reconcile.control.facts import backends as by_kind
from sage_reconcile.control.manager import ControlPlaneManager
from sage_reconcile.control.naming import name_of
from sage_reconcile.control.registering import external_fields, require_model
from sage_reconcile.converge import Host
from sage_reconcile.errors import PermanentError, ReconcileError
from sage_reconcile.management.answers import AnyRequest, ApiError, of_defect, of_request, of_sage
from sage_reconcile.management.operations import Operations, Perform
from sage_reconcile.model.management import (
    ROUTES,
    Action,
    Backends,
    Directory,
    EngineInfo,
    EngineList,
    GpuList,
    Operation,
    RegisterEngine,
    StartEngine,
    Status,
)
from sage_reconcile.version import __version__

ROOT = "/v1/management"
NO_KEYS = "x-sage-open"
"""Sent by a gateway that has no keys."""


class Presence:
    """Whether somebody needs this process: requests under way, and when the last one ended (monotonic)."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._under_way = 0
        self._last = time.monotonic()

    def come(self) -> None:
        self._under_way += 1

    def leave(self) -> None:
        self._under_way -= 1
        self._last = time.monotonic()

    def idle_seconds(self) -> float:
        """How long nobody has needed it; 0 while somebody does."""
        if self._under_way or not self._operations.is_idle:
            return 0.0
        return time.monotonic() - self._last


def build(host: Host) -> tuple[Litestar, Presence]:
    """The application for one host."""
    manager = ControlPlaneManager(host=host)
    operations = Operations()
    presence = Presence(operations)

    @asynccontextmanager
    async def life(_: Litestar) -> AsyncIterator[None]:
        yield
        await operations.close()

    async def come(_: AnyRequest) -> None:
        presence.come()

    async def leave(_: AnyRequest) -> None:
        presence.leave()

    app = Litestar(
        route_handlers=[
            *_looking(manager),
            *_starting(manager.engines, operations),
            *_ending(manager.engines, operations),
            *_following(operations),
        ],
        lifespan=[life],
        before_request=come,
        after_response=leave,
        openapi_config=None,
        exception_handlers={ReconcileError: of_sage, HTTPException: of_request, Exception: of_defect},
        logging_config=None,
    )
    return app, presence


def _looking(manager: ControlPlaneManager) -> list[HTTPRouteHandler]:
    @get(ROOT)
    async def directory() -> Directory:
        return Directory("sage-management", __version__, ROUTES)

    @get(f"{ROOT}/engines")
    async def engines() -> EngineList:
        found = await manager.engines.look()
        return EngineList(found, len(found))

    @get(f"{ROOT}/status")
    async def status() -> Status:
        return await manager.look()

    @get(f"{ROOT}/backends")
    async def backends() -> Backends:
        seen = await manager.look()
        return by_kind(seen.engines, seen.control_plane.timestamp)

    @get(f"{ROOT}/gpu")
    async def gpu() -> GpuList:
        seen = await manager.look()
        return GpuList(seen.gpu, seen.control_plane.gaps)

    return [directory, engines, status, backends, gpu]


def _starting(engines: EngineLifecycleManager, operations: Operations) -> list[HTTPRouteHandler]:
    @post(f"{ROOT}/engines")
    async def start(
        request: Request[Any, Any, Any], data: StartEngine, wait: bool = False, replace: bool = False
    ) -> Response[Operation]:
        if data.extra_args and request.headers.get(NO_KEYS):
            raise ApiError(
                403,
                "admin_key_required",
                "extra_args go into a command line of this host, and without keys nobody has shown to be an "
                "administrator: set an admin key (`sage gateway key`), or write them into a stack file",
                "extra_args",
            )
        name = data.name or name_of(data.model_id)
        options = _options(data, "model_id", "name")

        async def perform(work: Work) -> list[EngineInfo]:
            await engines.start(data.model_id, name, options, work, may_replace=replace)
            return [await engines.find(f"{adhoc.STACK}/{name}")]

        return await _begun(operations, "start", f"{adhoc.STACK}/{name}#0", perform, wait)

    @post(f"{ROOT}/engines/register")
    async def register(data: RegisterEngine, wait: bool = False) -> Response[Operation]:
        name = data.name or name_of(data.model_id)
        fields = external_fields(data.url, _options(data, "model_id", "name", "url"))

        async def perform(work: Work) -> list[EngineInfo]:
            await require_model(fields["url"], data.model_id)
            await engines.start(data.model_id, name, fields, work, may_replace=True)
            return [await engines.find(f"{adhoc.STACK}/{name}")]

        return await _begun(operations, "register", f"{adhoc.STACK}/{name}#0", perform, wait)

    return [start, register]


def _ending(engines: EngineLifecycleManager, operations: Operations) -> list[HTTPRouteHandler]:
    @post(f"{ROOT}/engines/prune")
    async def prune(wait: bool = False) -> Response[Operation]:
        async def perform(work: Work) -> list[EngineInfo]:
            gone = await engines.prune(work)
            work.say(f"taken out: {', '.join(gone) or 'nothing'}")
            return []

        return await _begun(operations, "prune", "", perform, wait)

    @delete(f"{ROOT}/engines/{{engine_id:path}}", status_code=202)
    async def stop(engine_id: str, drain: bool = True, wait: bool = False) -> Response[Operation]:
        named = engine_id.removeprefix("/")
        try:
            info = await engines.find(named)
        except PermanentError as error:
            raise ApiError(404, "engine_not_found", str(error), "engine_id") from None
        engines.require_adhoc(info, named)

        async def perform(work: Work) -> list[EngineInfo]:
            await engines.end(named, drain, work)
            return [one for one in await engines.look() if one.engine_id == info.engine_id]

        return await _begun(operations, "stop", info.engine_id, perform, wait)

    return [prune, stop]


def _following(operations: Operations) -> list[HTTPRouteHandler]:
    def known(id: str) -> Operation:
        found = operations.get(id)
        if found is None:
            raise ApiError(
                404,
                "operation_not_found",
                "There is no such operation; those that ended long ago, and before a restart of the gateway, "
                "are forgotten. GET /v1/management/engines tells how things are.",
                "operation_id",
            )
        return found

    @get(f"{ROOT}/operations/{{operation_id:str}}")
    async def operation(operation_id: str) -> Operation:
        return known(operation_id)

    @get(f"{ROOT}/operations/{{operation_id:str}}/events")
    async def events(operation_id: str) -> ServerSentEvent:
        known(operation_id)
        return ServerSentEvent(_events(operations, operation_id, known))

    return [operation, events]


async def _events(
    operations: Operations, id: str, known: Callable[[str], Operation]
) -> AsyncIterator[ServerSentEventMessage]:
    async for event in operations.follow(id):
        yield ServerSentEventMessage(
            data=msgspec.json.encode(event).decode(), event="progress", id=str(event.number)
        )
    yield ServerSentEventMessage(data=msgspec.json.encode(known(id)).decode(), event="end")


async def _begun(
    operations: Operations, action: Action, engine_id: str, perform: Perform, wait: bool
) -> Response[Operation]:
    """202 with the operation; with `wait` how it ended, and its error as an error."""
    id = operations.begin(action, engine_id, perform)
    location = {"location": f"{ROOT}/operations/{id}"}
    if not wait:
        begun = operations.get(id)
        assert begun is not None
        return Response(begun, status_code=202, headers=location)
    ended, error = await operations.wait(id)
    if error is not None:
        raise error
    return Response(ended, status_code=200, headers=location)


def _options(data: StartEngine | RegisterEngine, *without: str) -> EngineOptions:
    """What was given of the body, as options of the classes."""
    given = {name: value for name in data.__struct_fields__ if (value := getattr(data, name)) is not None}
    return cast(EngineOptions, {name: value for name, value in given.items() if name not in without})
