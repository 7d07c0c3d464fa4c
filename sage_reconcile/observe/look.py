"""One look at a host: GPUs, processes, records and probes put together as ObservedState.

A part that fails or does not answer in time becomes a gap, never an exception: not seen is not absent.
"""

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from sage_reconcile import facts, leases
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.desired import DesiredState, HealthSpec, Kind, LaunchSpec, ProbeKind, ReplicaId
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.modelfiles import ModelFiles
from sage_reconcile.model.observed import (
    Demand,
    Gap,
    Health,
    LastExit,
    Lease,
    Mark,
    ObservedGpu,
    ObservedLaunch,
    ObservedNode,
    ObservedState,
)
from sage_reconcile.model.routing import RoutingTable
from sage_reconcile.observe import records
from sage_reconcile.observe.adapters import adapters_of
from sage_reconcile.observe.connect import refuses
from sage_reconcile.observe.deadline import Deadline
from sage_reconcile.observe.demand import read_demand
from sage_reconcile.observe.external import look_outside
from sage_reconcile.observe.gpus import Found, read_gpus
from sage_reconcile.observe.modelfiles import ModelReader
from sage_reconcile.observe.processes import LiveLaunch, ProcessTable, scan
from sage_reconcile.observe.programs import installed
from sage_reconcile.observe.versions import versions_of

MAX_PROBES = 64
PROBE_SECONDS = 2.0
GPU_SECONDS = 10.0
SCAN_SECONDS = 20.0
MODEL_SECONDS = 20.0

# What the threads below decode, at the same time.
codec.prepare(Mark, RoutingTable, records.LaunchRecord, records.ExitRecord)

CAN_BE_ASLEEP = frozenset({Health.READY, Health.STARTING, Health.FAILING})


class Eyes(Protocol):
    """How a fleet is seen: one host here, many elsewhere."""

    async def look(self, desired: DesiredState | None = None) -> ObservedState:
        """What is there now; with `desired`, its external engines are probed too."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What the supervisor of one live launch wrote down, as far as it can be read."""

    record: records.LaunchRecord | None
    last_exit: LastExit | None
    woken_at: float = 0.0
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Past:
    """What the records tell of launches that have ended, of the routes, and of who is asked for; `fault` is
    why not all of it."""

    exits: tuple[tuple[ReplicaId, LastExit], ...] = ()
    routing: RoutingTable | None = None
    fault: str = ""
    leases: tuple[Lease, ...] = ()
    lease_fault: str = ""
    demand: tuple[Demand, ...] | None = None
    programs: tuple[str, ...] | None = None
    facts: tuple[Fact, ...] = ()


class LocalEyes:
    """The eyes of this host, for one SAGE_HOME. `node` is the name it goes by, its host name by default."""

    def __init__(self, home: Home, node: str | None = None, environ: Mapping[str, str] = os.environ) -> None:
        self.home = home
        self.node = node or socket.gethostname()
        self.environ = environ
        self._read_gpus = Deadline("NVML", GPU_SECONDS, partial(read_gpus, self.node, environ))
        self._read_processes = Deadline("the process table", SCAN_SECONDS, self._scan)
        self._read_past = Deadline("the run directory", SCAN_SECONDS, self._past)
        self._specs: tuple[LaunchSpec, ...] = ()
        self._model_files = ModelReader(home, environ)
        self._read_models = Deadline("the model directories", MODEL_SECONDS, self._read_specs)

    async def look(self, desired: DesiredState | None = None) -> ObservedState:
        """Never raises for what it cannot see: see `gaps`."""
        at = time.time()
        bound = asyncio.Semaphore(MAX_PROBES)
        (gpus, gpu_gaps), (table, written, scan_gaps), past, external = await asyncio.gather(
            self._gpus(), self._processes(), self._recorded(), look_outside(desired, self.environ, bound)
        )
        launches = await asyncio.gather(
            *(self._launch(live, written[live.mark.launch], desired, bound) for live in table.live)
        )
        specs = [engine.launch for engine in desired.engines] if desired else []
        return ObservedState(
            at=at,
            nodes=(ObservedNode(self.node, gpus, table.ports or (), table.boot_id),),
            launches=tuple(replace(launch, gpu_mib=held(gpus, launch.pids)) for launch in launches),
            orphans=tuple(replace(orphan, gpu_mib=held(gpus, orphan.pids)) for orphan in table.orphans),
            foreign=table.foreign,
            exits=past.exits,
            external=external,
            gaps=(*gpu_gaps, *scan_gaps, *self._unrecorded(past)),
            routing=past.routing,
            leases=past.leases,
            demand=past.demand,
            programs=past.programs,
            models=await self._models((*specs, *(live.mark.spec for live in table.live))),
            facts=past.facts,
        )

    async def _models(self, specs: tuple[LaunchSpec, ...]) -> tuple[ModelFiles, ...]:
        """The files of their models; without an answer in time (a network mount) they are unknown."""
        self._specs = specs
        try:
            return await self._read_models()
        except Exception as error:  # noqa: BLE001 - estimates only explain; no plan may fail for want of one
            names = {spec.model for spec in specs}
            reason = str(error) or type(error).__name__
            return tuple(ModelFiles(name, unknown=reason) for name in sorted(names))

    def _read_specs(self) -> tuple[ModelFiles, ...]:
        return self._model_files.read(self._specs)

    async def _gpus(self) -> Found:
        try:
            return await self._read_gpus()
        except Exception as error:  # noqa: BLE001 - a driver can fail in any way; all of them are one gap
            return (), (Gap(self.node, "gpus", f"GPUs cannot be read: {error or type(error).__name__}"),)

    async def _processes(self) -> tuple[ProcessTable, dict[str, _Written], tuple[Gap, ...]]:
        try:
            table, written = await self._read_processes()
        except Exception as error:  # noqa: BLE001 - without processes nothing is known, whatever the reason
            reason = f"processes cannot be read: {error or type(error).__name__}"
            return ProcessTable(), {}, (Gap(self.node, "processes", reason), Gap(self.node, "ports", reason))
        gaps = [Gap(self.node, "processes", note.reason) for note in table.unreadable]
        if reason := self.home.denied():
            gaps.append(Gap(self.node, "processes", reason))
        if table.ports is None:
            gaps.append(Gap(self.node, "ports", table.ports_error))
        return table, written, tuple(gaps)

    async def _recorded(self) -> "_Past":
        try:
            return await self._read_past()
        except OSError as error:
            return _Past(fault=str(error))  # records only explain; what runs is known without them

    def _unrecorded(self, past: "_Past") -> tuple[Gap, ...]:
        faults = (("records", past.fault), ("leases", past.lease_fault))
        return tuple(Gap(self.node, what, fault) for what, fault in faults if fault)

    def _scan(self) -> tuple[ProcessTable, dict[str, _Written]]:
        table = scan(self.home)
        written = {
            live.mark.launch: _Written(
                records.read_launch(self.home, live.mark),
                records.read_exit(self.home, live.mark),
                records.woken_at(self.home, live.mark),
                versions_of(live.mark.spec.runtime, live.engine.pid) if live.engine else (),
            )
            for live in table.live
        }
        return table, written

    def _past(self) -> "_Past":
        fault = records.unreadable(self.home)
        exits, routing = records.last_exits(self.home), records.read_routing(self.home)
        granted, lease_fault = leases.read(self.home)
        demand, programs = read_demand(self.home), installed(self.home)
        return _Past(exits, routing, fault, granted, lease_fault, demand, programs, facts.read(self.home))

    async def _launch(
        self, live: LiveLaunch, written: _Written, desired: DesiredState | None, bound: asyncio.Semaphore
    ) -> ObservedLaunch:
        record = written.record
        async with bound:
            if record is not None:
                health, message = await _checked(live, record)
            else:
                health, message = await _probed(live, _health_spec(live, desired))
            if live.mark.spec.can_sleep and health in CAN_BE_ASLEEP:
                from sage_reconcile.observe.probes import is_sleeping

                asleep = await is_sleeping(live.mark.placement.url, PROBE_SECONDS)
                health, message = (Health.ASLEEP, "") if asleep else (health, message)
            adapters = await adapters_of(live) if health is Health.READY else None
        launch = ObservedLaunch(
            mark=live.mark,
            health=health,
            supervisor_pid=live.supervisor.pid,
            supervisor_started=live.supervisor.started,
            engine_pid=live.engine.pid if live.engine else None,
            pids=live.pids,
            since=live.supervisor.started,
            message=message,
            directory=str(records.launch_dir(self.home, live.mark)),
            last_exit=written.last_exit,
            adapters=adapters,
            woken_at=written.woken_at,
            versions=written.versions,
        )
        if record is None:
            return launch
        return replace(
            launch,
            since=record.since,
            ready_at=record.ready_at,
            restarts=record.restarts,
            engine_pid=_engine_pid(live, record),
            live=record.live,
            engine_started=record.engine.started if record.engine else None,
        )


def _engine_pid(live: LiveLaunch, record: records.LaunchRecord) -> int | None:
    """The supervisor knows its engine from workers that lost their parent and became its children."""
    if record.engine is None:
        return None
    return record.engine.pid if record.engine.pid in live.pids else None


async def _checked(live: LiveLaunch, record: records.LaunchRecord) -> tuple[Health, str]:
    """The supervisor's word, unless its engine was ready and now nothing listens. No answer in time may be a
    busy engine, and the supervisor knows better than one probe."""
    if record.health is not Health.READY:
        return record.health, record.message
    placement = live.mark.placement
    if await refuses(placement.host, placement.port, PROBE_SECONDS):
        return Health.FAILING, f"was ready, but {placement.host}:{placement.port} refuses connections"
    return Health.READY, record.message


async def _probed(live: LiveLaunch, health: HealthSpec) -> tuple[Health, str]:
    """Without a record only a real answer says READY."""
    from sage_reconcile.observe.probes import probe_ready

    mark = live.mark
    result = await probe_ready(mark.placement.url, mark.model, health.probe, health.path, PROBE_SECONDS)
    if result.ok:
        return Health.READY, ""
    return Health.STARTING, f"its record is missing, and asked directly: {result.message}"


def _health_spec(live: LiveLaunch, desired: DesiredState | None) -> HealthSpec:
    """How the stack wants the engine probed, where it is known; else by what the engine is for."""
    if desired is not None and desired.stack == live.mark.replica.stack:
        engine = desired.engine(live.mark.replica.engine)
        if engine is not None:
            return engine.live.health
    is_embedding = live.mark.spec.kind is Kind.EMBEDDING
    return HealthSpec(probe=ProbeKind.EMBED if is_embedding else ProbeKind.GENERATE)


def held(gpus: Iterable[ObservedGpu], pids: Iterable[int]) -> tuple[tuple[str, int], ...]:
    """MiB per GPU UUID that these processes hold, as NVML measured. Empty where NVML's pids are another
    namespace's (a container): nothing matches, and nothing is guessed."""
    members = frozenset(pids)
    sums = {
        gpu.uuid: sum(holder.mib for holder in gpu.holders if holder.name and holder.pid in members)
        for gpu in gpus
    }
    return tuple((uuid, mib) for uuid, mib in sorted(sums.items()) if mib)
