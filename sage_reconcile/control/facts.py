"""What one look saw, in the words of the management API. Pure."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from sage_reconcile.model.management import (
    Backends,
    ControlPlane,
    EngineInfo,
    GpuInfo,
    Reservation,
    State,
    Status,
)
from sage_reconcile.model.observed import ExternalHealth, Gap, Health, ObservedLaunch, ObservedState, Orphan
from sage_reconcile.model.routing import Backend
from sage_reconcile.plan.memory import Ledger
from sage_reconcile.version import __version__

STATES: dict[Health, State] = {
    Health.STARTING: "STARTING",
    Health.READY: "READY",
    Health.ASLEEP: "STOPPED",
    Health.FAILING: "ERROR",
    Health.BACKOFF: "ERROR",
    Health.EXITED: "STOPPED",
    Health.UNKNOWN: "ERROR",
}

ALIVE = frozenset({Health.READY, Health.ASLEEP, Health.STARTING})

Active = Mapping[str, int]
"""Requests in flight by replica, `stack/engine#0`."""


def engine_infos(observed: ObservedState, active: Active) -> list[EngineInfo]:
    """Every launch, then every external engine that is routed to; a sleeping engine counts as stopped."""
    backends = {one.id: one for one in (observed.routing.backends if observed.routing else ())}
    names = _metadata(observed)
    launches = sorted(observed.launches, key=lambda one: (one.replica, one.supervisor_started))
    indices = {gpu.uuid: gpu.index for gpu in observed.gpus}
    infos = [
        _launch(one, observed.at, backends.get(one.mark.id), active, indices, names.get(one.mark.id, {}))
        for one in launches
    ]
    known = {(one.stack, one.engine): one for one in observed.external}
    for backend in backends.values():
        if backend.is_external:
            health = known.get(
                (backend.stack, backend.engine), ExternalHealth(backend.engine, Health.UNKNOWN)
            )
            infos.append(_external(backend, health, observed.at, active, names.get(backend.id, {})))
    return infos


def _metadata(observed: ObservedState) -> dict[str, dict[str, str]]:
    """What the stack file says of each backend for people, by backend id."""
    routes = observed.routing.routes if observed.routing else ()
    return {backend: dict(route.metadata) for route in routes for backend in route.backends}


def _launch(
    launch: ObservedLaunch,
    at: float,
    backend: Backend | None,
    active: Active,
    indices: Mapping[str, int],
    metadata: dict[str, str],
) -> EngineInfo:
    mark, health = launch.mark, launch.health
    is_draining = backend is not None and backend.state == "draining"
    is_well = health in ALIVE
    return EngineInfo(
        engine_id=str(mark.replica),
        model_id=mark.spec.model,
        host=mark.placement.host,
        port=mark.placement.port,
        state="DRAINING" if is_draining else STATES[health],
        engine_kind=mark.spec.kind.value,
        created_at=launch.supervisor_started,
        last_heartbeat=at if health is Health.READY else launch.since,
        consecutive_failures=0 if is_well else max(1, launch.restarts),
        active_requests=active.get(str(mark.replica), 0),
        metadata=metadata,
        stack=mark.replica.stack,
        runtime=mark.spec.runtime,
        url=mark.placement.url,
        pid=launch.engine_pid,
        gpus=sorted(indices[uuid] for uuid in mark.placement.gpus if uuid in indices),
        gpu_memory_gb=_gib(sum(mib for _, mib in launch.gpu_mib)),
        restarts=launch.restarts,
        message="asleep" if health is Health.ASLEEP else launch.message,
    )


def _external(
    backend: Backend, health: ExternalHealth, at: float, active: Active, metadata: dict[str, str]
) -> EngineInfo:
    address = urlsplit(backend.url)
    is_ready = health.health is Health.READY
    replica = f"{backend.stack}/{backend.engine}#{backend.replica}"
    return EngineInfo(
        engine_id=replica,
        model_id=backend.model,
        host=address.hostname or "",
        port=address.port or (443 if address.scheme == "https" else 80),
        state=STATES[health.health],
        engine_kind="embedding" if backend.kind == "embedding" else "llm",
        created_at=0.0,
        last_heartbeat=at if is_ready else 0.0,
        consecutive_failures=0 if is_ready else 1,
        active_requests=active.get(replica, 0),
        metadata=metadata,
        stack=backend.stack,
        runtime="external",
        url=backend.url,
        is_managed=False,
        message=health.message,
    )


def gpu_infos(observed: ObservedState) -> list[GpuInfo]:
    """Memory as the planner counts it: nothing twice. What an engine declared and already holds is used, and
    only what it has yet to take is reserved."""
    infos = []
    for account in Ledger(observed).accounts.values():
        gpu = account.gpu
        reserved = max(0, gpu.total_mib - account.free - gpu.used_mib)
        infos.append(
            GpuInfo(
                index=gpu.index,
                name=gpu.name,
                memory_total_gb=_gib(gpu.total_mib),
                memory_used_gb=_gib(gpu.used_mib),
                memory_free_gb=_gib(max(0, account.free)),
                memory_reserved_gb=_gib(reserved),
                utilization=gpu.utilization,
                engines=sorted(
                    str(one.replica) for one in observed.launches if gpu.uuid in one.mark.placement.gpus
                ),
                is_mock=gpu.is_mock,
                uuid=gpu.uuid,
            )
        )
    return infos


def reservations(observed: ObservedState) -> list[Reservation]:
    """What each launch counts with on each GPU: what it declared or what was measured, the larger."""
    owners: list[ObservedLaunch | Orphan] = [*observed.launches, *observed.orphans]
    names = {one.mark.launch: str(one.replica) for one in owners}
    return [
        Reservation(names[launch], account.gpu.index, _gib(mib))
        for account in Ledger(observed).accounts.values()
        for launch, mib in account.held.items()
        if mib
    ]


def backends(infos: list[EngineInfo], at: float) -> Backends:
    """Engines by kind, `at` epoch seconds: what the gateway may route to."""
    llm = [one for one in infos if one.engine_kind == "llm"]
    embedding = [one for one in infos if one.engine_kind == "embedding"]
    return Backends(
        llm_backends=llm,
        embedding_backends=embedding,
        total_llm_backends=len(llm),
        healthy_llm_backends=sum(one.state == "READY" for one in llm),
        total_embedding_backends=len(embedding),
        healthy_embedding_backends=sum(one.state == "READY" for one in embedding),
        timestamp=at,
    )


def status(observed: ObservedState, infos: list[EngineInfo], home: str, fault: str = "") -> Status:
    """All of it; `infos` are the engines of the same look, `fault` is why not all of them could be read."""
    return Status(
        control_plane=ControlPlane(
            node=observed.nodes[0].name if observed.nodes else "",
            version=__version__,
            sage_home=home,
            timestamp=observed.at,
            leftovers=len(observed.orphans),
            gaps=[*([fault] if fault else ()), *(in_words(gap) for gap in observed.gaps)],
        ),
        gpu=gpu_infos(observed),
        engines=infos,
        managed_instances=[one.engine_id for one in infos if one.is_managed],
        resource_reservations=reservations(observed),
    )


def in_words(gap: Gap) -> str:
    return f"cannot see {gap.what} of {gap.node}: {gap.reason}"


def _gib(mib: int) -> float:
    return round(mib / 1024, 3)
