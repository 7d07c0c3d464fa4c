"""What runs, as a table and as JSON."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sage_reconcile.model.desired import ReplicaId
from sage_reconcile.model.observed import (
    ExternalHealth,
    Health,
    Lease,
    ObservedGpu,
    ObservedLaunch,
    ObservedState,
)
from sage_reconcile.model.routing import Backend
from sage_reconcile.plan.classify import duration
from sage_reconcile.render.demand import (
    NOT_LOADED,
    asked_words,
    demand_data,
    not_loaded,
    not_loaded_data,
    on_demand,
)
from sage_reconcile.render.folding import Folding
from sage_reconcile.render.gpus import gpus_data, gpus_view

STYLES = {
    Health.READY: "green",
    Health.STARTING: "cyan",
    Health.ASLEEP: "blue",
    Health.FAILING: "red",
    Health.BACKOFF: "yellow",
    Health.EXITED: "red",
    Health.UNKNOWN: "yellow",
}


def status_data(observed: ObservedState) -> dict[str, Any]:
    """The shape that `sage status --json` promises; sizes in MiB, times in seconds."""
    return {
        "engines": [
            *(_engine(launch, observed) for launch in _sorted(observed)),
            *(_external(backend, health) for backend, health in _externals(observed)),
        ],
        "on_demand": [not_loaded_data(told, observed.at) for told in not_loaded(observed)],
        "gpus": gpus_data(observed),
        "orphans": [
            {"id": o.mark.id, "engine": o.replica.engine, "replica": o.replica.replica, "pids": list(o.pids)}
            for o in observed.orphans
        ],
        "gaps": [{"node": gap.node, "what": gap.what, "reason": gap.reason} for gap in observed.gaps],
        "leases": [lease_data(gpu, lease) for gpu, lease in leased(observed)],
    }


def leased(observed: ObservedState) -> list[tuple[ObservedGpu, Lease]]:
    """GPUs with a lease that has not ended."""
    found = ((gpu, observed.lease_of((gpu.uuid,))) for gpu in observed.gpus)
    return [(gpu, lease) for gpu, lease in found if lease is not None]


def lease_data(gpu: ObservedGpu, lease: Lease) -> dict[str, Any]:
    """`until` in epoch seconds."""
    words = {"who": lease.who, "until": lease.until, "reason": lease.reason, "asleep": lease.may_sleep}
    return {"node": gpu.node, "gpu": gpu.index, "uuid": gpu.uuid, **words}


def _sorted(observed: ObservedState) -> list[ObservedLaunch]:
    return sorted(observed.launches, key=lambda launch: (launch.replica, launch.supervisor_started))


def _engine(launch: ObservedLaunch, observed: ObservedState) -> dict[str, Any]:
    mark = launch.mark
    begun = launch.ready_at or launch.since or launch.supervisor_started
    return {
        "id": mark.id,
        "engine": mark.replica.engine,
        "replica": mark.replica.replica,
        "stack": mark.replica.stack,
        "model": mark.spec.model,
        "runtime": mark.spec.runtime,
        "state": str(launch.health),
        "pid": launch.engine_pid,
        "supervisor_pid": launch.supervisor_pid,
        "port": mark.placement.port,
        "fingerprint": mark.fingerprint,
        "gpus": list(mark.placement.gpus),
        "gpu_memory_mib": sum(mib for _, mib in launch.gpu_mib),
        "uptime_seconds": round(max(0.0, observed.at - begun), 1),
        "restarts": launch.restarts,
        "message": launch.message,
        "adapters": [adapter.name for adapter in launch.adapters or ()],
        **demand_data(on_demand(observed).get((mark.replica.stack, mark.replica.engine)), observed.at),
    }


def _externals(observed: ObservedState) -> list[tuple[Backend, ExternalHealth]]:
    """The published engines that are not sage's own, each with what is known of its health."""
    known = {(one.stack, one.engine): one for one in observed.external}
    return [
        (backend, known.get((backend.stack, backend.engine), ExternalHealth(backend.engine, Health.UNKNOWN)))
        for backend in (observed.routing.backends if observed.routing else ())
        if backend.is_external
    ]


def _external(backend: Backend, health: ExternalHealth) -> dict[str, Any]:
    return {
        "id": backend.id,
        "engine": backend.engine,
        "replica": backend.replica,
        "stack": backend.stack,
        "model": backend.model,
        "runtime": "external",
        "state": str(health.health),
        "pid": None,
        "supervisor_pid": None,
        "port": None,
        "fingerprint": "",
        "gpus": [],
        "gpu_memory_mib": 0,
        "uptime_seconds": 0.0,
        "restarts": 0,
        "message": health.message,
        "adapters": [],
    }


def status_view(
    observed: ObservedState, drift: dict[str, str], shows_foreign: bool, notes: Sequence[str] = ()
) -> RenderableType:
    """Engines, GPUs, leftovers, gaps and notes. `drift` maps a replica to what differs from the stack file.

    Engines of other SAGE_HOMEs are counted, and with `shows_foreign` named: they may outnumber one's own.
    """
    parts: list[RenderableType] = []
    table, externals, waiting = _engines(observed, drift), _externals(observed), not_loaded(observed)
    is_blind = any(gap.what in ("processes", "node") for gap in observed.gaps)
    nothing = f"no engine of this SAGE_HOME {'is seen' if is_blind else 'runs'}"
    parts.append(Folding(table) if observed.launches or externals or waiting else Text(nothing))
    parts += [
        Text(f"{health.engine} (external) {health.message}", "yellow")
        for _, health in externals
        if health.message
    ]
    parts += [
        Text(
            f"leftover: {o.mark.id}: processes {', '.join(map(str, o.pids))}; `sage apply` ends them",
            "yellow",
        )
        for o in observed.orphans
    ]
    parts += _foreign(observed) if shows_foreign else _foreign_count(observed)
    parts += [Text(f"{gpu.node} GPU {gpu.index} is {lease}", "yellow") for gpu, lease in leased(observed)]
    parts += [Text(f"cannot see {gap.what} of {gap.node}: {gap.reason}", "yellow") for gap in observed.gaps]
    parts += [Text(note, "yellow") for note in notes]
    if observed.gpus:
        parts += [Text(""), gpus_view(observed)]
    return Group(*parts)


def _engines(observed: ObservedState, drift: dict[str, str]) -> Table:
    """The launches, and below them the engines that are not sage's own."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ENGINE", "STATE", "MODEL", "RUNTIME", "PORT", "PID", "GPU", "MIB", "UP", "RESTARTS"):
        is_number = name in ("PORT", "PID", "MIB", "RESTARTS")
        table.add_column(
            name, no_wrap=name != "MODEL", overflow="fold", justify="right" if is_number else "left"
        )
    table.add_column("DRIFT" if drift else "", overflow="fold")
    told = on_demand(observed)
    indices = {gpu.uuid: str(gpu.index) for gpu in observed.gpus}
    for launch in _sorted(observed):
        data = _engine(launch, observed)
        table.add_row(
            str(launch.replica),
            Text(
                data["state"]
                + asked_words(told.get((launch.replica.stack, launch.replica.engine)), observed.at),
                style=STYLES[launch.health],
            ),
            " + ".join([data["model"], *data["adapters"]]),
            data["runtime"],
            str(data["port"]),
            str(data["pid"] or "-"),
            ",".join(indices.get(uuid, uuid) for uuid in data["gpus"]) or "cpu",
            str(data["gpu_memory_mib"] or "-"),
            duration(data["uptime_seconds"]),
            str(data["restarts"]),
            drift.get(str(launch.replica), ""),
        )
    for backend, health in _externals(observed):
        table.add_row(*_external_row(backend, health, drift))
    for one in not_loaded(observed):
        state = Text(NOT_LOADED + asked_words(one, observed.at), style="blue")
        table.add_row(f"{one.stack}/{one.engine}", state, *("-",) * 8, "")
    return table


def _external_row(backend: Backend, health: ExternalHealth, drift: dict[str, str]) -> tuple[str | Text, ...]:
    """Of an engine that is not sage's own only the address and the health are known."""
    replica = str(ReplicaId(backend.stack, backend.engine, backend.replica))
    state = Text(str(health.health), style=STYLES[health.health])
    unknown = ("-",) * 5
    return replica, state, backend.model, "external", backend.url, *unknown, drift.get(replica, "")


def _foreign(observed: ObservedState) -> list[Text]:
    return [
        Text(
            f"another SAGE_HOME: {f.mark.replica} ({f.user}, {f.mark.home}) on port {f.mark.placement.port}",
            "dim",
        )
        for f in observed.foreign
    ]


def _foreign_count(observed: ObservedState) -> list[Text]:
    count = len(observed.foreign)
    if not count:
        return []
    if count == 1:
        return [Text("1 engine of another SAGE_HOME runs here; --all shows it", "dim")]
    return [Text(f"{count} engines of other SAGE_HOMEs run here; --all shows them", "dim")]
