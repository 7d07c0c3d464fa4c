"""An in-memory fleet: GPUs whose memory is really taken and given back, ports that clash, engines that fail.

`FakeWorld` is both Eyes and Hands. It enforces what a real host enforces (memory, ports) and records in
`violations` what must never happen; touching a process that is not ours raises at once. `adrift` are launches
that began to load again by themselves: nothing can be kept from starting beside them.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from sage_reconcile.apply.execute import Executor, Options
from sage_reconcile.apply.hands import LaunchFailed, Started
from sage_reconcile.errors import TransientError
from sage_reconcile.model.actions import Launch, Outcome, Plan, Step
from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import DesiredState, LaunchSpec, LiveSpec
from sage_reconcile.model.observed import (
    Demand,
    ForeignLaunch,
    Gap,
    GpuHolder,
    Health,
    LastExit,
    Mark,
    ObservedGpu,
    ObservedLaunch,
    ObservedNode,
    ObservedState,
    Orphan,
    PortHolder,
)
from sage_reconcile.model.routing import RoutingTable
from sage_reconcile.plan.memory import need_mib
from sage_reconcile.plan.policy import Policy
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.route.table import routing_table
from tests.build import HOME, NOW

Place = tuple[str, str]
"""A node and the UUID of one of its GPUs."""

ASLEEP_MIB = 512
"""What an engine that sleeps still holds of each GPU."""


@dataclass
class FakeProcess:
    """A running launch of ours."""

    mark: Mark
    live: LiveSpec
    pid: int
    started: float
    health: Health = Health.STARTING
    held: dict[str, int] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    woken_at: float = 0.0

    @property
    def engine(self) -> str:
        return self.mark.replica.engine


@dataclass
class Script:
    """Misbehaviour by engine name. `loading`: gets ready when the event is set, not before.

    `broken_models` die at start, whichever engine serves them: an edit that cannot work.
    """

    never_ready: set[str] = field(default_factory=set)
    dies_at_start: set[str] = field(default_factory=set)
    broken_models: set[str] = field(default_factory=set)
    stop_hangs: set[str] = field(default_factory=set)
    never_drained: set[str] = field(default_factory=set)
    sleepless: set[str] = field(default_factory=set)
    does_not_wake: set[str] = field(default_factory=set)
    broken_adapters: set[str] = field(default_factory=set)
    loading: dict[str, asyncio.Event] = field(default_factory=dict)


class FakeWorld:
    """A fleet of hosts. `seed` shuffles how concurrent steps interleave."""

    def __init__(self, nodes: Iterable[ObservedNode], seed: int = 0) -> None:
        self.nodes = list(nodes)
        self.gpus: dict[Place, ObservedGpu] = {(g.node, g.uuid): g for n in self.nodes for g in n.gpus}
        self.processes: dict[str, FakeProcess] = {}
        self.orphans: list[Orphan] = []
        self.foreign: list[ForeignLaunch] = []
        self.exits: dict[str, tuple[Mark, LastExit]] = {}
        self.gaps: list[Gap] = []
        self.routing: RoutingTable | None = None
        self.script = Script()
        self.demand: dict[str, Demand] | None = None
        self.calls: list[str] = []
        self.violations: list[str] = []
        self.peak: Counter[Place] = Counter()
        self.at = NOW
        self.looks = 0
        self.adrift: set[str] = set()
        self._known: set[str] = set()
        self._number = 0
        self._random = random.Random(seed)

    # What is there

    def used(self, place: Place) -> int:
        """MiB in use on a GPU: of strangers, of ours, of leftovers."""
        node, uuid = place
        ours = sum(p.held.get(uuid, 0) for p in self.processes.values() if p.mark.placement.node == node)
        left = sum(dict(o.gpu_mib).get(uuid, 0) for o in self.orphans if o.mark.placement.node == node)
        return self.gpus[place].used_mib + ours + left

    def add(self, launch: ObservedLaunch) -> FakeProcess:
        """Puts a launch of ours into the world, as if it had been started earlier."""
        process = FakeProcess(
            launch.mark,
            launch.live or LiveSpec(),
            launch.supervisor_pid,
            launch.supervisor_started,
            launch.health,
        )
        self._take(process)
        self.processes[launch.mark.launch] = process
        self._known.add(launch.mark.launch)
        return process

    def add_orphan(self, orphan: Orphan) -> None:
        self.orphans.append(orphan)
        self._known.add(orphan.mark.launch)

    def pids(self) -> dict[str, int]:
        """The supervisor of each replica that runs."""
        return {str(p.mark.replica): p.pid for p in self.processes.values()}

    def engines(self) -> dict[str, str]:
        """The model that each replica serves, of those that are ready."""
        ready = (p for p in self.processes.values() if p.health is Health.READY)
        return {p.mark.replica.short: p.mark.spec.model for p in ready}

    # Eyes

    async def look(self, desired: DesiredState | None = None) -> ObservedState:
        await self._turns()
        self.looks += 1
        return self.seen()

    def seen(self) -> ObservedState:
        """The whole world, now."""
        self.at += 1.0
        return ObservedState(
            at=self.at,
            nodes=tuple(self._node(node) for node in self.nodes),
            launches=tuple(self._launch(process) for process in self.processes.values()),
            orphans=tuple(self.orphans),
            foreign=tuple(self.foreign),
            exits=tuple((mark.replica, last) for mark, last in self.exits.values()),
            gaps=tuple(self.gaps),
            routing=self.routing,
            demand=None if self.demand is None else tuple(self.demand.values()),
        )

    def _node(self, node: ObservedNode) -> ObservedNode:
        gpus = tuple(self._gpu(gpu) for gpu in node.gpus)
        ours = [
            PortHolder(p.mark.placement.port, p.pid + 1, "engine")
            for p in self.processes.values()
            if p.mark.placement.node == node.name
        ]
        left = [
            PortHolder(o.mark.placement.port, o.pids[0], "engine")
            for o in self.orphans
            if o.mark.placement.node == node.name
        ]
        return replace(node, gpus=gpus, ports=(*node.ports, *ours, *left))

    def _gpu(self, gpu: ObservedGpu) -> ObservedGpu:
        holders = [
            GpuHolder(p.pid + 1, "engine", p.held[gpu.uuid])
            for p in self.processes.values()
            if p.mark.placement.node == gpu.node and p.held.get(gpu.uuid)
        ]
        return replace(gpu, used_mib=self.used((gpu.node, gpu.uuid)), holders=tuple(holders))

    def _launch(self, process: FakeProcess) -> ObservedLaunch:
        return ObservedLaunch(
            mark=process.mark,
            health=process.health,
            supervisor_pid=process.pid,
            supervisor_started=process.started,
            engine_pid=process.pid + 1,
            pids=(process.pid, process.pid + 1),
            since=process.started,
            live=process.live,
            gpu_mib=tuple(sorted(process.held.items())),
            adapters=self._adapters(process),
            woken_at=process.woken_at,
        )

    def _adapters(self, process: FakeProcess) -> tuple[Adapter, ...] | None:
        if not process.mark.spec.takes_adapters or process.health is not Health.READY:
            return None
        return tuple(sorted(Adapter(name, path) for name, path in process.adapters.items()))

    # Hands

    async def prepare(self, order: Launch) -> None:
        return None

    async def launch(self, order: Launch) -> Started:
        await self._turns()
        self._number += 1
        replica, place = order.replica, order.placement
        self.calls.append(f"launch {replica.short} {order.spec.model}")
        name = f"new{self._number}"
        mark = Mark(HOME, replica, order.fingerprint, name, order.spec, place, order.spec.model)
        process = FakeProcess(mark, order.live, 9000 + 10 * self._number, self.at)
        self._check_port(mark)
        self._check_lane(mark)
        self._take(process)
        self.processes[name] = process
        self._known.add(name)
        return Started(mark, process.pid, process.started, "")

    async def await_ready(self, launch: Started | ObservedLaunch, timeout: float) -> None:
        mark = self._ours(launch.mark)
        self.calls.append(f"await {mark.replica.short}")
        await self._turns()
        process = self.processes.get(mark.launch)
        engine = mark.replica.engine
        if engine in self.script.loading:
            await self.script.loading[engine].wait()
        if process is None:
            raise LaunchFailed("the engine ended before it answered")
        if engine in self.script.dies_at_start or mark.spec.model in self.script.broken_models:
            del self.processes[mark.launch]
            raise LaunchFailed("the engine ended before it answered: exit code 1", ("boom",))
        if engine in self.script.never_ready:
            raise LaunchFailed(f"not ready within {timeout:g} s: it has not answered yet", ("loading",))
        process.health = Health.READY

    async def drain(self, launch: ObservedLaunch, timeout: float) -> bool:
        self._ours(launch.mark)
        self.calls.append(f"drain {launch.mark.launch}")
        await self._turns()
        engine = launch.mark.replica.engine
        if engine in self.script.never_drained:
            return False
        if self.demand and engine in self.demand:
            self.demand[engine] = replace(self.demand[engine], in_flight=0)
        return True

    def _check_idle(self, mark: Mark) -> None:
        told = (self.demand or {}).get(mark.replica.engine)
        if told and told.in_flight:
            self.violations.append(f"{mark.replica.short} is cut off {told.in_flight} requests")

    async def stop(self, launch: Started | ObservedLaunch, drain: float) -> None:
        mark = self._ours(launch.mark)
        self.calls.append(f"stop {mark.launch}")
        self._check_idle(mark)
        await self._turns()
        if mark.replica.engine in self.script.stop_hangs:
            raise TransientError(f"processes of {mark.id} do not end, not even by SIGKILL")
        self.processes.pop(mark.launch, None)

    async def reap(self, orphan: Orphan) -> None:
        self._ours(orphan.mark)
        self.calls.append(f"reap {orphan.mark.launch}")
        await self._turns()
        self.orphans = [o for o in self.orphans if o.mark.launch != orphan.mark.launch]

    async def update_live(self, launch: ObservedLaunch, live: LiveSpec) -> None:
        self.calls.append(f"update {launch.mark.launch}")
        self.processes[self._ours(launch.mark).launch].live = live

    async def sleep(self, launch: Started | ObservedLaunch) -> None:
        self.calls.append(f"sleep {launch.mark.launch}")
        self._check_idle(launch.mark)
        await self._turns()
        if launch.mark.replica.engine in self.script.sleepless:
            raise TransientError(f"{launch.mark.replica.short} sleeps, but its GPU memory is not back")
        process = self.processes[self._ours(launch.mark).launch]
        process.health = Health.ASLEEP
        process.held = dict.fromkeys(process.held, ASLEEP_MIB)

    async def wake(self, launch: ObservedLaunch) -> None:
        self.calls.append(f"wake {launch.mark.launch}")
        await self._turns()
        if launch.mark.replica.engine in self.script.does_not_wake:
            raise TransientError(f"{launch.mark.replica.short} was woken, but does not answer")
        process = self.processes[self._ours(launch.mark).launch]
        process.held = {}
        process.health = Health.STARTING
        self._take(process)
        process.health = Health.READY
        process.woken_at = self.at

    async def load_adapter(self, launch: Started | ObservedLaunch, adapter: Adapter) -> None:
        self.calls.append(f"load {adapter.name} into {launch.mark.launch}")
        await self._turns()
        process = self.processes[self._ours(launch.mark).launch]
        assert process.mark.spec.takes_adapters, f"{process.engine} was started without --enable-lora"
        assert process.health is Health.READY, f"{process.engine} is {process.health}"
        if adapter.path in self.script.broken_adapters:
            raise TransientError(f"{launch.mark.replica.short} did not load LoRA adapter {adapter.name}")
        process.adapters[adapter.name] = adapter.path

    async def unload_adapter(self, launch: ObservedLaunch, adapter: Adapter) -> None:
        self.calls.append(f"unload {adapter.name} from {launch.mark.launch}")
        await self._turns()
        process = self.processes[self._ours(launch.mark).launch]
        routes = self.routing.routes if self.routing else ()
        if any(route.name == adapter.name and launch.mark.id in route.backends for route in routes):
            self.violations.append(f"{adapter.name} is unloaded while requests are sent to it")
        process.adapters.pop(adapter.name, None)

    def last_line(self, launch: Started | ObservedLaunch) -> str:
        return f"{launch.mark.replica.short} is loading"

    # The laws of this world

    def _ours(self, mark: Mark) -> Mark:
        assert mark.home == HOME, f"{mark.id} belongs to {mark.home}"
        assert mark.launch in self._known, f"{mark.id} was never ours"
        return mark

    def _take(self, process: FakeProcess) -> None:
        place = process.mark.placement
        for uuid in place.gpus:
            gpu = self.gpus[place.node, uuid]
            taken = ASLEEP_MIB if process.health is Health.ASLEEP else need(process.mark.spec, gpu)
            used = self.used((place.node, uuid)) + taken
            if used > gpu.total_mib:
                self.violations.append(f"{process.mark.replica.short} takes {used} of {gpu.total_mib} MiB")
                process.held = {}
                raise LaunchFailed(f"CUDA out of memory on GPU {uuid}: {used} of {gpu.total_mib} MiB")
            process.held[uuid] = process.held.get(uuid, 0) + taken
            self.peak[place.node, uuid] = max(self.peak[place.node, uuid], used)

    def _check_port(self, mark: Mark) -> None:
        place = mark.placement
        held = {p.mark.placement.port for p in self.processes.values() if p.mark.placement.node == place.node}
        held |= {holder.port for node in self.nodes if node.name == place.node for holder in node.ports}
        held |= {o.mark.placement.port for o in self.orphans if o.mark.placement.node == place.node}
        if place.port in held:
            self.violations.append(f"{mark.replica.short} takes port {place.port}, which is held")
            raise LaunchFailed(f"port {place.port} is in use")

    def _check_lane(self, mark: Mark) -> None:
        place = mark.placement
        for process in self.processes.values():
            other = process.mark.placement
            shares = other.node == place.node and set(other.gpus) & set(place.gpus)
            if shares and process.health is Health.STARTING and process.mark.launch not in self.adrift:
                self.violations.append(f"{mark.replica.short} starts on a GPU where {process.engine} starts")

    async def _turns(self) -> None:
        for _ in range(self._random.randrange(3)):
            await asyncio.sleep(0)


def need(spec: LaunchSpec, gpu: ObservedGpu) -> int:
    """What a launch really takes of a GPU: what it declares; nothing where nobody knows."""
    return need_mib(spec, gpu.total_mib) or 0


class FakeRoutes:
    """The executor's routes over a FakeWorld; `tables` holds every table that was published."""

    def __init__(self, world: FakeWorld, desired: DesiredState) -> None:
        self._world = world
        self._desired = desired
        self._observed = world.seen()
        self.withdrawn: set[str] = set()
        self.tables: list[RoutingTable] = []

    async def publish(self) -> None:
        self._observed = await self._world.look(self._desired)
        self._write()

    async def withdraw(self, launch: ObservedLaunch) -> None:
        self._world.calls.append(f"withdraw {launch.mark.launch}")
        self.withdrawn.add(launch.mark.id)
        self._write()

    async def admit(self, launch: ObservedLaunch) -> None:
        self._world.calls.append(f"admit {launch.mark.launch}")
        await self.publish()

    async def restore(self, launch: ObservedLaunch) -> None:
        self._world.calls.append(f"restore {launch.mark.launch}")
        self.withdrawn.discard(launch.mark.id)
        self._write()

    def _write(self) -> None:
        table = routing_table(self._desired, self._observed, frozenset(self.withdrawn))
        self._world.routing = table
        self._observed = replace(self._observed, routing=table)
        self.tables.append(table)

    def ready(self, table: RoutingTable | None = None) -> dict[str, list[str]]:
        """The launches that a name goes to, of the newest table unless told otherwise."""
        table = table or self.tables[-1]
        states = {backend.id: backend.state for backend in table.backends}
        return {
            route.name: [b.rpartition(":")[2] for b in route.backends if states[b] == "ready"]
            for route in table.routes
        }


async def apply(
    world: FakeWorld, desired: DesiredState, policy: Policy | None = None, options: Options | None = None
) -> tuple[Plan, tuple[Outcome, ...]]:
    """One pass over the world: look, plan, publish, execute, publish."""
    plan = reconcile(desired, world.seen(), policy or Policy())
    routes = FakeRoutes(world, desired)
    await routes.publish()
    outcomes = await Executor(world, routes, FakeProgress(), options or Options()).execute(plan)
    await routes.publish()
    return plan, outcomes


class FakeProgress:
    """Records what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.outcomes: list[Outcome] = []

    def started(self, step: Step) -> None:
        self.events.append(f"started {step.id}")

    def acting(self, step: Step, doing: str, launch: Started | ObservedLaunch | None) -> None:
        self.events.append(f"{step.id}: {doing}")

    def ended(self, outcome: Outcome) -> None:
        self.events.append(f"ended {outcome.step.id}: {outcome.result}")
        self.outcomes.append(outcome)
