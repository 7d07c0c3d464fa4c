"""What the management API says and takes, as values: the gateway describes it by them.

Sizes in GiB, times in epoch seconds. Names are those of the first system, so that its clients go on working.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

State = Literal["STARTING", "READY", "DRAINING", "STOPPED", "ERROR"]
Kind = Literal["llm", "embedding"]
Action = Literal["start", "register", "stop", "prune"]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Text = Annotated[str, Meta(min_length=1, max_length=512)]
Count = Annotated[int, Meta(ge=1, le=1024)]
Word = Annotated[str, Meta(min_length=1, max_length=4096)]


class EngineInfo(msgspec.Struct, frozen=True):
    """One replica of an engine, or an external engine.

    `engine_id` is `STACK/ENGINE#REPLICA`. `active_requests` are those that the gateway has there, at most a
    second ago. `last_heartbeat` is when it was last known to answer, `consecutive_failures` is 0 while it is.
    """

    engine_id: str
    model_id: str
    host: str
    port: int
    state: State
    engine_kind: Kind
    created_at: float
    last_heartbeat: float
    consecutive_failures: int
    active_requests: int
    metadata: dict[str, str]
    stack: str
    runtime: str
    url: str
    pid: int | None = None
    gpus: list[int] = []
    gpu_memory_gb: float = 0.0
    restarts: int = 0
    is_managed: bool = True
    message: str = ""


class EngineList(msgspec.Struct, frozen=True):
    engines: list[EngineInfo]
    count: int


class GpuInfo(msgspec.Struct, frozen=True):
    """`used` is what the driver says, `reserved` what engines declared beyond that; `free` is the rest."""

    index: int
    name: str
    memory_total_gb: float
    memory_used_gb: float
    memory_free_gb: float
    memory_reserved_gb: float
    utilization: int | None
    engines: list[str]
    is_mock: bool
    uuid: str


class GpuList(msgspec.Struct, frozen=True):
    """`gaps` says what could not be seen: no GPU in the list is then no proof that there is none."""

    gpus: list[GpuInfo]
    gaps: list[str] = []


class Reservation(msgspec.Struct, frozen=True):
    """What one launch counts with on one GPU."""

    engine_id: str
    gpu: int
    memory_gb: float


class ControlPlane(msgspec.Struct, frozen=True):
    node: str
    version: str
    sage_home: str
    timestamp: float
    leftovers: int
    gaps: list[str]


class Status(msgspec.Struct, frozen=True):
    control_plane: ControlPlane
    gpu: list[GpuInfo]
    engines: list[EngineInfo]
    managed_instances: list[str]
    resource_reservations: list[Reservation]


class Backends(msgspec.Struct, frozen=True):
    llm_backends: list[EngineInfo]
    embedding_backends: list[EngineInfo]
    total_llm_backends: int
    healthy_llm_backends: int
    total_embedding_backends: int
    healthy_embedding_backends: int
    timestamp: float


class Directory(msgspec.Struct, frozen=True):
    """What there is."""

    service: str
    version: str
    routes: dict[str, str]


class StartEngine(msgspec.Struct, forbid_unknown_fields=True):
    """An engine to start: an entry of `$SAGE_HOME/stacks/adhoc.yaml`, whose fields go by other names there.

    What is left out keeps what the entry says, so an engine that was stopped starts as it was.
    """

    model_id: Text
    name: Name | None = None
    engine_kind: Kind = "llm"
    tensor_parallel_size: Count | None = None
    pipeline_parallel_size: Count | None = None
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    engine_label: Text | None = None
    max_concurrent_requests: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    required_memory_gb: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    use_gpu: bool | None = None
    runtime: Name | None = None
    metadata: dict[str, str] | None = None
    extra_args: list[Word] | None = None


class RegisterEngine(msgspec.Struct, forbid_unknown_fields=True):
    """An engine that runs elsewhere: probed and routed to, never started or stopped."""

    url: Text
    model_id: Text
    name: Name | None = None
    engine_kind: Kind = "llm"
    engine_label: Text | None = None
    max_concurrent_requests: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    metadata: dict[str, str] | None = None


class Event(msgspec.Struct, frozen=True):
    """Something that happened in an operation: `number` counts from 1."""

    number: int
    at: float
    text: str


class Operation(msgspec.Struct, frozen=True):
    """Something that takes time. `error` says what went wrong and what to do; "" unless it failed."""

    id: str
    action: Action
    engine_id: str
    state: Literal["running", "done", "failed"]
    created_at: float
    finished_at: float | None
    events: list[Event]
    error: str = ""
    engines: list[EngineInfo] = []


ROUTES: dict[str, str] = {
    "GET /v1/management": "this directory",
    "GET /v1/management/engines": "every engine, external ones included",
    "POST /v1/management/engines": "starts an engine",
    "POST /v1/management/engines/register": "routes to an engine that runs elsewhere",
    "DELETE /v1/management/engines/{engine_id}": "stops an engine; ?drain=false waits for no request",
    "POST /v1/management/engines/prune": "takes the entries of stopped engines out of adhoc.yaml",
    "GET /v1/management/status": "engines, GPUs, what is reserved, what cannot be seen",
    "GET /v1/management/backends": "what the gateway routes to, by kind",
    "GET /v1/management/gpu": "GPUs and their memory",
    "GET /v1/management/operations/{id}": "how an operation is going",
    "GET /v1/management/operations/{id}/events": "its events as they come (SSE)",
}

Json = dict[str, Any]
