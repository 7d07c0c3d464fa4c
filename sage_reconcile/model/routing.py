"""The routing table: all that the gateway is told. The gateway imports this module and nothing else of sage.

The file is `$SAGE_HOME/routing/routing.json`, replaced atomically; schemas/routing.schema.json describes it.
"""

from dataclasses import dataclass


def external_id(stack: str, engine: str) -> str:
    """The backend id of an engine that sage does not own."""
    return f"{stack}/{engine}#0@external"


@dataclass(frozen=True, slots=True)
class Backend:
    """One replica that may answer requests.

    `id` is the launch identity (`stack/engine#replica@fingerprint:launch`). `url` has no trailing slash and
    no `/v1`. `model` is the name that the engine itself answers to; where it differs from the name that the
    client sent, the gateway rewrites it. `state` is "ready" (route to it), "draining" (let requests in
    flight finish, send no new ones) or "pending" (known, cannot answer yet). `api_key` is a `${env:X}` or
    `${file:X}` reference that the gateway resolves, or "". `node` is where it runs, "" for an engine that is
    not sage's own.
    """

    id: str
    stack: str
    engine: str
    replica: int
    url: str
    model: str
    kind: str
    state: str = "ready"
    weight: int = 1
    max_concurrent: int = 256
    api_key: str = ""
    node: str = ""

    @property
    def is_external(self) -> bool:
        return self.id == external_id(self.stack, self.engine)


@dataclass(frozen=True, slots=True)
class Route:
    """One model name that clients may send. `backends` are Backend ids, sorted. Times are in seconds.

    `policy` picks the backend. Requests wait while every backend has as many as it takes, `queue_size` of
    them at most, each for `queue_timeout` at most; `queue_policy` says who is next. `hold` is the wait while
    no backend is ready. `first_byte_timeout` is what the beginning of a reply may take and `idle_timeout` the
    pause between two pieces of it; 0 is no limit. `model` is what the engine is asked for, where that is not
    the backend's own model: a LoRA adapter. `stack` is the one that offers the name: it tells whose a
    route without backends is. `on_demand` is the engine of that stack that is started, or woken, when a
    request is held for this name; "" for none.
    """

    name: str
    kind: str
    backends: tuple[str, ...]
    policy: str = "least_inflight"
    hold: float = 30.0
    metadata: tuple[tuple[str, str], ...] = ()
    stack: str = ""
    queue_policy: str = "fifo"
    queue_size: int = 1000
    queue_timeout: float = 60.0
    first_byte_timeout: float = 0.0
    idle_timeout: float = 0.0
    model: str = ""
    on_demand: str = ""


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """All routes of one SAGE_HOME, of every stack in it; routes sorted by name, backends by id."""

    routes: tuple[Route, ...] = ()
    backends: tuple[Backend, ...] = ()
    version: int = 1
