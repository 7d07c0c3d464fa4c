"""What the stack file asks for, as values. Pure: made by stack.resolve, read by the planner."""

import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeGuard

from sage_reconcile.model import codec
from sage_reconcile.model.adapters import LORA_RANK, Adapter
from sage_reconcile.model.gateway import GatewaySpec

ArgValue = str | int | float | bool | None | tuple[str | int | float, ...]


class Kind(StrEnum):
    LLM = "llm"
    EMBEDDING = "embedding"


class EngineState(StrEnum):
    RUNNING = "running"
    ASLEEP = "asleep"
    STOPPED = "stopped"


class Device(StrEnum):
    """Where an engine runs. PREFER_GPU takes a GPU where the node has any, else the CPU."""

    GPU = "gpu"
    CPU = "cpu"
    PREFER_GPU = "prefer-gpu"


class ProbeKind(StrEnum):
    GENERATE = "generate"
    EMBED = "embed"
    HTTP = "http"


class RestartPolicy(StrEnum):
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class Strategy(StrEnum):
    AUTO = "auto"
    SURGE = "surge"
    SLEEP_SWAP = "sleep-swap"
    RECREATE = "recreate"


@dataclass(frozen=True, slots=True, order=True)
class ReplicaId:
    """One replica of one engine of one stack; written `stack/engine#replica`."""

    stack: str
    engine: str
    replica: int

    @property
    def short(self) -> str:
        return f"{self.engine}#{self.replica}"

    def __str__(self) -> str:
        return f"{self.stack}/{self.engine}#{self.replica}"


@dataclass(frozen=True, slots=True)
class Program:
    """The version of an engine program that the file pins; `sage runtime install` builds its environment.

    `python` is a Python version, "" for the installer's choice; `packages` are requirements besides; `index`
    is the URL of a package index, or a directory of wheels, "" for the installer's own.
    """

    version: str
    python: str = ""
    packages: tuple[str, ...] = ()
    index: str = ""

    def folder(self, runtime: str) -> str:
        """The name of its environment in SAGE_HOME/runtimes: the same for whoever pins the same."""
        digest = hashlib.sha256(codec.encode(self)).hexdigest()[:8]
        return f"{runtime}-{self.version}-{digest}"


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """All that a process needs to be what the file asks: change any of it and a new process is needed.

    `args` and `env` are sorted by key. `env` values and `api_key` keep `${env:X}` and `${file:X}` as
    written: secrets are resolved at launch and never stored. `gpu_memory` is "auto", MiB per GPU (int) or
    a fraction of one GPU (float). `python` is an interpreter that the file names, None with a `program`.
    """

    kind: Kind
    runtime: str
    model: str
    device: Device = Device.CPU
    python: str | None = None
    command: tuple[str, ...] = ()
    args: tuple[tuple[str, ArgValue], ...] = ()
    extra_args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpu_memory: str | int | float = "auto"
    can_sleep: bool = False
    url: str | None = None
    api_key: str | None = None
    program: Program | None = None

    @property
    def gpu_count(self) -> int:
        """GPUs that one replica takes when it runs on GPUs: TP x PP."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def is_external(self) -> bool:
        return self.url is not None

    @property
    def takes_adapters(self) -> bool:
        """Whether LoRA adapters can be loaded while it runs."""
        return self.runtime == "vllm" and dict(self.args).get("enable-lora") not in (None, False)

    @property
    def base_url(self) -> str:
        """`url` without a trailing slash or the /v1 that clients are used to write; "" if there is none."""
        return (self.url or "").rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(frozen=True, slots=True)
class PlacementSpec:
    """Where the file pins an engine; None means that sage chooses. `gpus` are indices or UUIDs."""

    port: int | None = None
    gpus: tuple[int | str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CanarySpec:
    """A question whose greedy answer of at most `max_tokens` tokens must have `expect` in it."""

    prompt: str
    expect: str
    max_tokens: int = 32


@dataclass(frozen=True, slots=True)
class HealthSpec:
    """Probe settings; times in seconds."""

    probe: ProbeKind = ProbeKind.GENERATE
    path: str = "/health"
    startup_timeout: float = 600.0
    interval: float = 10.0
    timeout: float = 5.0
    failures: int = 3
    canary: CanarySpec | None = None


@dataclass(frozen=True, slots=True)
class RestartSpec:
    """What the supervisor does when an engine that had been ready exits; times in seconds."""

    policy: RestartPolicy = RestartPolicy.ALWAYS
    max_attempts: int = 5
    window: float = 600.0
    backoff: float = 1.0
    backoff_max: float = 60.0


@dataclass(frozen=True, slots=True)
class LiveSpec:
    """Settings that change in the running launch, without a new process. `drain` in seconds."""

    health: HealthSpec = HealthSpec()
    restart: RestartSpec = RestartSpec()
    drain: float = 30.0

    @property
    def digest(self) -> str:
        return hashlib.sha256(codec.encode(self)).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """What only the gateway notices. `names` are the model names that clients may send, sorted.

    The other fields mean what they mean in a Backend and a Route.
    """

    names: tuple[str, ...]
    label: str | None = None
    weight: int = 1
    max_concurrent: int = 256
    policy: str = "least_inflight"
    hold: float = 30.0
    metadata: tuple[tuple[str, str], ...] = ()
    queue_policy: str = "fifo"
    queue_size: int = 1000
    queue_timeout: float = 60.0
    first_byte_timeout: float = 0.0
    idle_timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class OnDemandSpec:
    """When an engine that runs on demand is loaded, and when it is put aside; times in seconds.

    `min_residency`: how long it stays, once loaded, though others wait for its place. `priority`: who has
    less makes room first. `pin`: stays once loaded. `preload`: loaded by an apply, though nobody asks.
    """

    idle_ttl: float = 600.0
    min_residency: float = 30.0
    preload: bool = False
    priority: int = 0
    pin: bool = False


@dataclass(frozen=True, slots=True)
class DesiredEngine:
    """One entry of `engines`, resolved. `after` names the engines of `depends_on`. Where `lora` is None, the
    adapters of the engine are no business of sage: its own flags may name some.

    `sized` are flags of `launch.args` that sage itself sized for the adapters of `lora`, see
    `is_embodied_by`.
    """

    name: str
    launch: LaunchSpec
    route: RouteSpec
    placement: PlacementSpec = PlacementSpec()
    live: LiveSpec = LiveSpec()
    replicas: int = 1
    state: EngineState = EngineState.RUNNING
    strategy: Strategy = Strategy.AUTO
    after: tuple[str, ...] = ()
    fingerprint: str = ""
    on_demand: OnDemandSpec | None = None
    lora: tuple[Adapter, ...] | None = None
    sized: tuple[str, ...] = ()

    def is_embodied_by(self, fingerprint: str, spec: LaunchSpec) -> bool:
        """Whether a process of this launch spec is what the file asks for.

        One that was sized for other adapters is, if it takes those of now: an adapter that comes or goes is
        no reason for a new process. Slots (max-loras) that are too few only make adapters take turns.
        """
        if fingerprint == self.fingerprint or not self.sized:
            return fingerprint == self.fingerprint
        own, there = dict(self.launch.args), dict(spec.args)
        rank, needed = there.get(LORA_RANK), own.get(LORA_RANK)
        if LORA_RANK in self.sized and not (_is_count(rank) and _is_count(needed) and rank >= needed):
            return False
        return _without(spec, self.sized) == _without(self.launch, self.sized)


@dataclass(frozen=True, slots=True)
class DesiredState:
    """A whole stack; engines are sorted by name."""

    stack: str
    engines: tuple[DesiredEngine, ...]
    gateway: GatewaySpec = field(default_factory=GatewaySpec)

    def engine(self, name: str) -> DesiredEngine | None:
        return next((engine for engine in self.engines if engine.name == name), None)


def _is_count(value: ArgValue) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _without(launch: LaunchSpec, flags: tuple[str, ...]) -> LaunchSpec:
    return replace(launch, args=tuple(pair for pair in launch.args if pair[0] not in flags))


LATER = ("program",)


def fingerprint(launch: LaunchSpec) -> str:
    """12 hex digits of a SHA-256 over the whole value, so that no field can be forgotten.

    A field that came later counts where it says something: an update of sage restarts no engine.
    """
    plain = codec.to_plain(launch)
    for name in LATER:
        if plain[name] is None:
            del plain[name]
    return hashlib.sha256(codec.encode(plain)).hexdigest()[:12]
