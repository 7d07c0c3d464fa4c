"""The plan, as values: steps with causes, and the actions that each step is made of."""

from dataclasses import dataclass
from enum import StrEnum

from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import LaunchSpec, LiveSpec, ReplicaId, Strategy
from sage_reconcile.model.observed import Gap, ObservedLaunch, Orphan, Placement


class Verdict(StrEnum):
    """What the planner decided for one replica; the words of `summary` and of a step's `action`."""

    HOLD = "hold"
    KEEP = "keep"
    AWAIT = "await"
    UPDATE = "update"
    WAKE = "wake"
    SLEEP = "sleep"
    START = "start"
    REPLACE = "replace"
    REAP = "reap"
    ADOPT = "adopt"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Launch:
    """Start a new process tree for a replica.

    `counted_mib` is what the plan counts it with on each GPU, of one that would else be told to take more
    than it ever fills.
    """

    replica: ReplicaId
    spec: LaunchSpec
    fingerprint: str
    placement: Placement
    live: LiveSpec
    counted_mib: int | None = None


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Wait until `launch`, or the one that this step made, has answered; `timeout` in seconds."""

    replica: ReplicaId
    timeout: float
    launch: ObservedLaunch | None = None


@dataclass(frozen=True, slots=True)
class Reroute:
    """Publish routes from what is ready now; of `woken` it is known already."""

    woken: ObservedLaunch | None = None


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Send no new request to this launch."""

    launch: ObservedLaunch


@dataclass(frozen=True, slots=True)
class Drain:
    """Wait until the launch has no request in flight, `timeout` seconds at most.

    `is_required`: if it has some even then, it goes on serving, and the step fails.
    """

    launch: ObservedLaunch
    timeout: float
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """End every process of the launch and wait until its GPU memory is back."""

    launch: ObservedLaunch
    drain: float


@dataclass(frozen=True, slots=True)
class Reap:
    """End the leftover processes of a launch whose supervisor is gone."""

    orphan: Orphan


@dataclass(frozen=True, slots=True)
class UpdateLive:
    """Give the running supervisor new settings."""

    launch: ObservedLaunch
    live: LiveSpec


@dataclass(frozen=True, slots=True)
class Sleep:
    """Put `launch`, or the one that this step made, to sleep: it gives its GPU memory back."""

    launch: ObservedLaunch | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    launch: ObservedLaunch


@dataclass(frozen=True, slots=True)
class LoadLora:
    """Load an adapter into `launch`, or the one that this step made."""

    adapter: Adapter
    launch: ObservedLaunch | None = None


@dataclass(frozen=True, slots=True)
class UnloadLora:
    """Take an adapter out of a running engine; no request is sent to it any more."""

    launch: ObservedLaunch
    adapter: Adapter


Action = (
    Launch
    | AwaitReady
    | Reroute
    | Withdraw
    | Drain
    | Stop
    | Reap
    | UpdateLive
    | Sleep
    | Wake
    | LoadLora
    | UnloadLora
)


@dataclass(frozen=True, slots=True)
class Expected:
    """Seconds that a step is expected to cost, from what was measured here before; None is unknown.

    `outage`: no replica of the engine answers; requests are held for `hold` of them at most, and those of the
    first `refused` seconds are refused. `work`: from its beginning to its end. Draining is not in them.
    """

    outage: float | None
    work: float | None
    refused: float | None = None
    hold: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One change of one replica: its actions run in order.

    `after` names steps that must be done before; `behind` those that must have ended, well or not: they
    start on the same GPU, and engines that size themselves at once mis-size each other.
    """

    id: str
    verdict: Verdict
    replica: ReplicaId
    cause: str
    actions: tuple[Action, ...]
    after: tuple[str, ...] = ()
    strategy: Strategy | None = None
    reason: str = ""
    changes: tuple[str, ...] = ()
    placement: Placement | None = None
    notes: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class Remedy:
    """An edit of one field of an engine that would make room, and what it does, `said` in words."""

    engine: str
    field: str
    value: str
    said: str

    @property
    def edit(self) -> str:
        """As `sage plan --set` takes it."""
        return f"engines.{self.engine}.{self.field}={self.value}"


@dataclass(frozen=True, slots=True)
class Blocked:
    """A replica that needs a change which cannot be made, and why, with the arithmetic.

    `remedies`, cheapest first, are for one that `lacks_memory`: any one of them is enough.
    """

    replica: ReplicaId
    reason: str
    lacks_memory: bool = False
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """A replica that stays as it is; `verdict` is KEEP or HOLD. `lacks_place`: held for want of a GPU, while
    one is leased."""

    replica: ReplicaId
    verdict: Verdict
    reason: str = ""
    lacks_place: bool = False


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Memory of one GPU over one step, in MiB, with the steps before it in the plan's order done."""

    step: str
    before_mib: int
    peak_mib: int
    after_mib: int


@dataclass(frozen=True, slots=True)
class GpuTimeline:
    """Memory of one GPU over the plan, in MiB: as it is, at the worst moment, at the end.

    The worst moment is that of any order in which the steps may run; `steps` has those that change it.
    """

    node: str
    index: int
    uuid: str
    name: str
    total_mib: int
    before_mib: int
    peak_mib: int
    after_mib: int
    steps: tuple[StepMemory, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All that would be done, in order."""

    stack: str
    steps: tuple[Step, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    kept: tuple[Kept, ...] = ()
    memory: tuple[GpuTimeline, ...] = ()
    gaps: tuple[Gap, ...] = ()
    notes: tuple[str, ...] = ()
    described: bool = False

    @property
    def has_changes(self) -> bool:
        """Whether anything would change; waiting for an engine that is starting changes nothing."""
        return any(step.verdict is not Verdict.AWAIT for step in self.steps)


class Result(StrEnum):
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one step ended; `reason` and `tail` (last log lines) say why where it did not end well.

    `cause` is the known cause why an engine did not get ready, `said` the line of its log that shows it.
    """

    step: Step
    result: Result
    reason: str = ""
    seconds: float = 0.0
    tail: tuple[str, ...] = ()
    rolled_back: bool = False
    cause: str = ""
    said: str = ""
