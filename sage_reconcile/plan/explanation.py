"""Why one engine takes so much memory, and why it goes where it goes: `sage plan --explain`."""

from dataclasses import dataclass

from sage_reconcile.engines.estimate import estimate
from sage_reconcile.model.actions import Plan, Step
from sage_reconcile.model.desired import DesiredEngine, Device
from sage_reconcile.model.estimate import Estimate
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.observed import ObservedGpu, ObservedState
from sage_reconcile.plan.fit import shortage_of
from sage_reconcile.plan.memory import Account, Ledger
from sage_reconcile.plan.need import source_of
from sage_reconcile.plan.place import wanted_gpus


@dataclass(frozen=True, slots=True)
class GpuReason:
    """One GPU, in MiB: what is in use by others, by other engines once the plan is done, and free for this
    one; and in words why it is taken or not."""

    node: str
    index: int
    uuid: str
    total_mib: int
    foreign_mib: int
    engines_mib: int
    free_mib: int
    is_taken: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """`need_mib` is what the ledger counts on one GPU, None where it is unknown; `need_source` says why.

    `unknown` says why there is no estimate, `shortage` why the engine will not start. `fact` is what was
    measured of this very launch on such a GPU.
    """

    engine: str
    model: str
    where: str
    need_mib: int | None
    estimate: Estimate | None
    unknown: str = ""
    shortage: str = ""
    gpus: tuple[GpuReason, ...] = ()
    fact: Fact | None = None
    need_source: str = ""


def explain(engine: DesiredEngine, observed: ObservedState, plan: Plan) -> Explanation:
    """The explanation of one engine of a plan that was made of `observed`."""
    ledger = Ledger(observed)
    spec = engine.launch
    files = ledger.models.get(spec.model)
    on_gpus = bool(ledger.accounts) and spec.device is not Device.CPU and not spec.is_external
    total = _total(engine, observed, plan)
    found = estimate(spec, files, total) if on_gpus else None
    need = ledger.need(spec, total) if on_gpus else None
    fact = ledger.known.of(spec, total if on_gpus else 0)
    return Explanation(
        engine=engine.name,
        model=spec.model,
        where=_where(engine, plan),
        need_mib=need,
        estimate=found,
        unknown="" if found else _unknown(engine, on_gpus, files.unknown if files else ""),
        shortage=shortage_of(spec, found, total) if found and found.lacks_mib else "",
        gpus=_Reasons(engine, observed, plan, ledger).all() if on_gpus else (),
        fact=fact,
        need_source=source_of(spec, total, fact) if on_gpus else "",
    )


def _total(engine: DesiredEngine, observed: ObservedState, plan: Plan) -> int:
    """MiB of the smallest GPU that it takes, of the largest one here where it takes none."""
    taken = _taken(engine, observed, plan)
    sizes = [gpu.total_mib for gpu in observed.gpus if (gpu.node, gpu.uuid) in taken]
    return min(sizes) if sizes else max((gpu.total_mib for gpu in observed.gpus), default=0)


def _taken(engine: DesiredEngine, observed: ObservedState, plan: Plan) -> dict[tuple[str, str], str]:
    """The GPUs that its replicas have or get, and which of the two."""
    stack = plan.stack
    placed = [step for step in _steps(engine, plan) if step.placement]
    moved = {step.replica for step in placed}
    taken = {
        (launch.mark.placement.node, uuid): "runs here"
        for launch in observed.launches
        if (launch.replica.stack, launch.replica.engine) == (stack, engine.name)
        and launch.replica not in moved
        for uuid in launch.mark.placement.gpus
    }
    for step in placed:
        if step.placement:
            taken |= {(step.placement.node, uuid): "taken" for uuid in step.placement.gpus}
    return taken


def _steps(engine: DesiredEngine, plan: Plan) -> list[Step]:
    return [step for step in plan.steps if step.replica.engine == engine.name]


def _where(engine: DesiredEngine, plan: Plan) -> str:
    """What the plan does with it, in words."""
    blocked = [one.reason for one in plan.blocked if one.replica.engine == engine.name]
    if blocked:
        return f"blocked: {blocked[0]}"
    steps = [f"{step.verdict}: {step.cause}" for step in _steps(engine, plan)]
    return "; ".join(dict.fromkeys(steps)) or "stays as it is"


def _unknown(engine: DesiredEngine, on_gpus: bool, reason: str) -> str:
    if engine.launch.is_external:
        return "an external engine is not started from here"
    if not on_gpus:
        return "it runs on the CPU, or no GPU is seen"
    if not reason and engine.launch.runtime == "command":
        return "what a command takes is not computed: set gpu_memory"
    return reason or "the model's files were not looked for"


class _Reasons:
    """GPU by GPU, with what the rest of the plan takes and gives back."""

    def __init__(self, engine: DesiredEngine, observed: ObservedState, plan: Plan, ledger: Ledger) -> None:
        self._engine = engine
        self._ledger = ledger
        self._taken = _taken(engine, observed, plan)
        self._nodes = {node for node, _ in self._taken}
        self._pinned = [wanted_gpus(engine, number) for number in range(engine.replicas)]
        self._after = {(gpu.node, gpu.uuid): gpu.after_mib for gpu in plan.memory}

    def all(self) -> tuple[GpuReason, ...]:
        return tuple(self._one(account) for account in self._ledger.accounts.values())

    def _one(self, account: Account) -> GpuReason:
        gpu = account.gpu
        key = (gpu.node, gpu.uuid)
        need = self._ledger.need(self._engine.launch, gpu.total_mib)
        own = (need or 0) if key in self._taken else 0
        engines = max(0, self._after.get(key, 0) - account.foreign - own)
        free = gpu.total_mib - account.foreign - engines
        return GpuReason(
            gpu.node,
            gpu.index,
            gpu.uuid,
            gpu.total_mib,
            account.foreign,
            engines,
            free,
            key in self._taken,
            self._reason(gpu, need, free),
        )

    def _reason(self, gpu: ObservedGpu, need: int | None, free: int) -> str:
        pinned = any(names and (gpu.index in names or gpu.uuid in names) for names in self._pinned)
        taken = self._taken.get((gpu.node, gpu.uuid))
        if taken:
            why = "the file pins it" if pinned else "the emptiest" if need is None else "the tightest fit"
            return taken if taken == "runs here" else f"taken: {why}"
        if any(self._pinned) and not pinned:
            return "the file pins others"
        if need is not None and free < need:
            return f"too little: lacks {need - free:,} MiB"
        if self._nodes and gpu.node not in self._nodes:
            return "has room, but another node fits better"
        return "has room, but another GPU fits better" if self._taken else "has room"
