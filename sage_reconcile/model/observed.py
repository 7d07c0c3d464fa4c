"""What is really there, as values. `at` is the one clock that a planner may read (epoch seconds)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import LaunchSpec, LiveSpec, ReplicaId
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.modelfiles import ModelFiles
from sage_reconcile.model.routing import RoutingTable


class Health(StrEnum):
    """STARTING: never answered yet. READY: answered a real request. ASLEEP: gave its memory back.
    FAILING: was ready, probes fail. BACKOFF: exited, its supervisor will start it again.
    EXITED: its supervisor is ending the launch. UNKNOWN: could not be asked."""

    STARTING = "starting"
    READY = "ready"
    ASLEEP = "asleep"
    FAILING = "failing"
    BACKOFF = "backoff"
    EXITED = "exited"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a launch runs. `gpus` are UUIDs; `model` is the name that the engine itself answers to."""

    node: str
    port: int
    gpus: tuple[str, ...] = ()
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Mark:
    """The identity that every process of a launch carries in SAGE_LAUNCH. References, never secrets.

    `home` is the SAGE_HOME that owns the launch, `model` the name that the engine answers to (a model
    directory where the host has one for the spec's model).
    """

    home: str
    replica: ReplicaId
    fingerprint: str
    launch: str
    spec: LaunchSpec
    placement: Placement
    model: str
    version: int = 1

    @property
    def id(self) -> str:
        return f"{self.replica}@{self.fingerprint}:{self.launch}"


LOST = "its supervisor ended without a word (killed, or a reboot)"
"""The cause of an end that nobody could write down."""


@dataclass(frozen=True, slots=True)
class LastExit:
    """How a process of a replica ended last; `at` in epoch seconds, `cause` a known one or "".

    Of an end with the cause LOST, `at` is when its last news came. `said` is the line of the log that shows
    the cause; `fingerprint` that of the launch, "" where its record is gone.
    """

    at: float
    code: int | None
    signal: int | None
    was_ready: bool
    cause: str = ""
    hint: str = ""
    tail: tuple[str, ...] = ()
    said: str = ""
    fingerprint: str = ""

    @property
    def summary(self) -> str:
        """How it ended, in words: "stopped", "exited with code 1 (CUDA out of memory)"."""
        if self.cause == "stopped" or (self.cause and self.code is None and self.signal is None):
            return self.cause
        how = f"killed by signal {self.signal}" if self.signal else f"exited with code {self.code}"
        return f"{how} ({self.cause})" if self.cause else how


@dataclass(frozen=True, slots=True)
class ObservedLaunch:
    """One launch that is ours: its supervisor lives. `gpu_mib` maps GPU UUID to MiB that NVML measured.

    `live` is None where the supervisor's record could not be read. `adapters` are those that the engine says
    it has loaded, None where it takes none or was not to be asked. Times in epoch seconds; `woken_at` is 0.0
    where it never slept. `versions` are of the packages that it runs, as far as they are known.
    """

    mark: Mark
    health: Health
    supervisor_pid: int
    supervisor_started: float
    engine_pid: int | None = None
    pids: tuple[int, ...] = ()
    since: float = 0.0
    ready_at: float | None = None
    restarts: int = 0
    live: LiveSpec | None = None
    gpu_mib: tuple[tuple[str, int], ...] = ()
    message: str = ""
    directory: str = ""
    last_exit: LastExit | None = None
    adapters: tuple[Adapter, ...] | None = None
    woken_at: float = 0.0
    engine_started: float | None = None
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def replica(self) -> ReplicaId:
        return self.mark.replica


@dataclass(frozen=True, slots=True)
class Orphan:
    """Processes of a launch of ours whose supervisor is gone: provably ours, owned by nobody.

    `session` is the supervisor's pid as its record told, None where there is no record.
    """

    mark: Mark
    pids: tuple[int, ...]
    gpu_mib: tuple[tuple[str, int], ...] = ()
    session: int | None = None

    @property
    def replica(self) -> ReplicaId:
        return self.mark.replica


@dataclass(frozen=True, slots=True)
class ForeignLaunch:
    """A launch of another SAGE_HOME or user: shown and counted, never touched."""

    mark: Mark
    pids: tuple[int, ...]
    user: str


@dataclass(frozen=True, slots=True)
class GpuHolder:
    """A process that holds memory of a GPU. `name` is "" for one that is not seen from here: it ended, or the
    number is another PID namespace's. `parents` are its ancestors, the nearest first."""

    pid: int
    name: str
    mib: int
    parents: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class ObservedGpu:
    """One GPU (or MIG device). Memory in MiB; `utilization` in percent, None where not reported."""

    node: str
    index: int
    uuid: str
    name: str
    total_mib: int
    used_mib: int = 0
    holders: tuple[GpuHolder, ...] = ()
    utilization: int | None = None
    is_mock: bool = False


@dataclass(frozen=True, slots=True)
class PortHolder:
    """A listening TCP port; `pid` is None where the owner may not be seen."""

    port: int
    pid: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that could not be seen. `what` is "gpus", "processes", "ports", "records", "node" or an
    engine's id."""

    node: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class ObservedNode:
    """One host. `boot_id` changes at every boot."""

    name: str
    gpus: tuple[ObservedGpu, ...] = ()
    ports: tuple[PortHolder, ...] = ()
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A GPU (its UUID) that is left alone until `until`, epoch seconds; `ends` says the same in words.

    `may_sleep`: engines that can sleep stay there asleep, with what that keeps of the memory.
    """

    gpu: str
    until: float
    ends: str
    who: str
    reason: str
    may_sleep: bool = False
    version: int = 1

    def __str__(self) -> str:
        return f"leased to {self.who} until {self.ends}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ExternalHealth:
    """What probing an external engine gave; `message` goes on after its name: "does not answer: ..."."""

    engine: str
    health: Health
    message: str = ""
    stack: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """What the gateway tells of an engine on demand. Times in epoch seconds, 0.0 for never.

    `waiting` requests are held for it, some ever `since`; `in_flight` are with it. `last` is when a request
    was last there.
    """

    stack: str
    engine: str
    waiting: int = 0
    since: float = 0.0
    in_flight: int = 0
    last: float = 0.0


@dataclass(frozen=True, slots=True)
class ObservedState:
    """Everything one look saw. `is_described` is set when it came from an inventory file, not from a host.

    `models` are the files of the models of all engines, as far as they are on the host that plans, `facts`
    what was measured here before. `demand` is None where no gateway tells who is asked for. `programs` are
    the environments that sage has built there, by folder; None where nobody looked.
    """

    at: float
    nodes: tuple[ObservedNode, ...] = ()
    launches: tuple[ObservedLaunch, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    foreign: tuple[ForeignLaunch, ...] = ()
    exits: tuple[tuple[ReplicaId, LastExit], ...] = ()
    external: tuple[ExternalHealth, ...] = ()
    gaps: tuple[Gap, ...] = ()
    routing: RoutingTable | None = None
    is_described: bool = False
    models: tuple[ModelFiles, ...] = ()
    leases: tuple[Lease, ...] = ()
    demand: tuple[Demand, ...] | None = None
    programs: tuple[str, ...] | None = None
    facts: tuple[Fact, ...] = ()

    def lease_of(self, gpus: Iterable[str]) -> Lease | None:
        """The lease of any of these GPUs (UUIDs) that has not ended, the one that lasts longest."""
        wanted = frozenset(gpus)
        found = (lease for lease in self.leases if lease.gpu in wanted and lease.until > self.at)
        return max(found, key=lambda lease: (lease.until, lease.gpu), default=None)

    @property
    def gpus(self) -> tuple[ObservedGpu, ...]:
        return tuple(gpu for node in self.nodes for gpu in node.gpus)
