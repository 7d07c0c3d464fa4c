"""Short builders of the values that the planner reads, with sensible defaults."""

from collections.abc import Sequence
from dataclasses import replace

from sage_reconcile.model.desired import (
    ArgValue,
    DesiredEngine,
    DesiredState,
    Device,
    EngineState,
    Kind,
    LaunchSpec,
    LiveSpec,
    OnDemandSpec,
    PlacementSpec,
    ReplicaId,
    RouteSpec,
    Strategy,
    fingerprint,
)
from sage_reconcile.model.observed import (
    Gap,
    Health,
    Mark,
    ObservedGpu,
    ObservedLaunch,
    ObservedNode,
    ObservedState,
    Orphan,
    Placement,
    PortHolder,
)

HOME = "/home/user/.sage"
STACK = "demo"
NODE = "n1"
GIB = 1024
NOW = 1_000_000.0


def spec(
    model: str = "m",
    *,
    need: str | int | float = 10 * GIB,
    device: Device = Device.GPU,
    kind: Kind = Kind.LLM,
    runtime: str = "command",
    tp: int = 1,
    pp: int = 1,
    args: Sequence[tuple[str, ArgValue]] = (),
    can_sleep: bool = False,
    url: str | None = None,
) -> LaunchSpec:
    """`need` is gpu_memory: MiB, a fraction of a GPU, or "auto"."""
    return LaunchSpec(
        kind,
        runtime,
        model,
        device=device,
        args=tuple(args),
        tensor_parallel=tp,
        pipeline_parallel=pp,
        gpu_memory=need,
        can_sleep=can_sleep,
        url=url,
    )


def cpu_spec(model: str = "m", **changes: object) -> LaunchSpec:
    return replace(spec(model, device=Device.CPU, need="auto"), **changes)  # type: ignore[arg-type]


def engine(
    name: str = "chat",
    launch: LaunchSpec | None = None,
    *,
    replicas: int = 1,
    port: int | None = None,
    gpus: tuple[int | str, ...] | None = None,
    state: EngineState = EngineState.RUNNING,
    strategy: Strategy = Strategy.AUTO,
    after: Sequence[str] = (),
    names: Sequence[str] = (),
    route: RouteSpec | None = None,
    live: LiveSpec | None = None,
    on_demand: OnDemandSpec | None = None,
) -> DesiredEngine:
    launch = launch or spec()
    return DesiredEngine(
        name=name,
        launch=launch,
        route=route or RouteSpec(tuple(sorted({name, *names}))),
        placement=PlacementSpec(port, gpus),
        live=live or LiveSpec(),
        replicas=replicas,
        state=state,
        strategy=strategy,
        after=tuple(after),
        fingerprint=fingerprint(launch),
        on_demand=on_demand,
    )


def desired(*engines: DesiredEngine, stack: str = STACK) -> DesiredState:
    return DesiredState(stack, tuple(sorted(engines, key=lambda one: one.name)))


def uuid_of(index: int, node: str = NODE) -> str:
    return f"GPU-{node}-{index}"


def gpu(
    index: int = 0, total: int = 80 * GIB, *, node: str = NODE, used: int = 0, name: str = "H100"
) -> ObservedGpu:
    return ObservedGpu(node, index, uuid_of(index, node), name, total, used)


def node(
    name: str = NODE, gpus: int | Sequence[ObservedGpu] = 1, ports: Sequence[int | PortHolder] = ()
) -> ObservedNode:
    """`gpus` is a number of empty 80 GiB GPUs, or the GPUs."""
    found = [gpu(index, node=name) for index in range(gpus)] if isinstance(gpus, int) else gpus
    holders = [PortHolder(port) if isinstance(port, int) else port for port in ports]
    return ObservedNode(name, tuple(found), tuple(holders), boot_id=f"boot-{name}")


def mark(
    name: str = "chat",
    launch: LaunchSpec | None = None,
    *,
    replica: int = 0,
    id: str = "l1",
    port: int = 8901,
    gpus: Sequence[int | str] = (0,),
    on: str = NODE,
    stack: str = STACK,
    home: str = HOME,
) -> Mark:
    launch = launch or spec()
    on_cpu = launch.device is Device.CPU
    uuids = () if on_cpu else tuple(uuid_of(g, on) if isinstance(g, int) else g for g in gpus)
    return Mark(
        home=home,
        replica=ReplicaId(stack, name, replica),
        fingerprint=fingerprint(launch),
        launch=id,
        spec=launch,
        placement=Placement(on, port, uuids),
        model=launch.model,
    )


def running(
    of: Mark,
    health: Health = Health.READY,
    *,
    live: LiveSpec | None = None,
    started: float = NOW - 3600,
    pid: int = 4000,
    held: int | None = None,
    message: str = "",
) -> ObservedLaunch:
    """A launch; `held` is what NVML measured on each of its GPUs, in MiB."""
    gpu_mib = () if held is None else tuple((uuid, held) for uuid in of.placement.gpus)
    return ObservedLaunch(
        mark=of,
        health=health,
        supervisor_pid=pid,
        supervisor_started=started,
        engine_pid=pid + 1,
        pids=(pid, pid + 1),
        since=started,
        live=live or LiveSpec(),
        gpu_mib=gpu_mib,
        message=message,
    )


def launch_of(
    desired_engine: DesiredEngine, replica: int = 0, health: Health = Health.READY, **place: object
) -> ObservedLaunch:
    """The launch of an engine exactly as the file asks for it."""
    of = mark(desired_engine.name, desired_engine.launch, replica=replica, **place)  # type: ignore[arg-type]
    return running(of, health, live=desired_engine.live)


def orphan(of: Mark, pids: Sequence[int] = (77,), held: int = 0) -> Orphan:
    return Orphan(of, tuple(pids), tuple((uuid, held) for uuid in of.placement.gpus) if held else ())


def observed(
    *launches: ObservedLaunch, nodes: Sequence[ObservedNode] | None = None, **changes: object
) -> ObservedState:
    """One node with one empty GPU, and the launches on it, unless told otherwise."""
    state = ObservedState(NOW, tuple([node()] if nodes is None else nodes), launches)
    return replace(state, **changes)  # type: ignore[arg-type]


def gap(what: str = "processes", on: str = NODE, reason: str = "no answer in 20 s") -> Gap:
    return Gap(on, what, reason)
