"""The maps inside an engine of the stack file: probes, restarts, changes, sharing."""

from typing import Annotated, Literal

from pydantic import Field

from sage_reconcile.stack.fields import Bool, Duration, Int, PositiveDuration, Text
from sage_reconcile.stack.section import Section


class Canary(Section):
    """A question that the engine must answer rightly, for HTTP 200 says nothing of what was answered."""

    prompt: Annotated[Text, Field(description="What it is asked, as a chat message, at temperature 0.")]
    expect: Annotated[
        Text, Field(description="What its answer must have in it; small and capital letters are the same.")
    ]
    max_tokens: Annotated[Int, Field(ge=1, le=512, description="How long the answer may be.")] = 32


class Health(Section):
    """How sage finds out whether an engine works. An engine is ready when it has answered a real request."""

    probe: Annotated[
        Literal["generate", "embed", "http"] | None,
        Field(
            description="What a probe asks for: one generated token (`generate`, default of an llm engine), "
            "one embedding (`embed`, default of an embedding engine), or only a 200 on `path` (`http`)."
        ),
    ] = None
    path: Annotated[
        str, Field(pattern="^/", description="The path that is asked for liveness, and by `probe: http`.")
    ] = "/health"
    startup_timeout: Annotated[
        PositiveDuration,
        Field(description="How long a new engine may take until it answers for the first time."),
    ] = 600.0
    interval: Annotated[PositiveDuration, Field(description="Time between two probes.")] = 10.0
    timeout: Annotated[PositiveDuration, Field(description="How long one probe may take.")] = 5.0
    failures: Annotated[
        Int, Field(ge=1, description="Probes that must fail in a row before the engine counts as failing.")
    ] = 3
    canary: Annotated[
        Canary | None,
        Field(
            description="A question that an llm engine must answer rightly before it counts as ready: at its "
            "start, after every restart, when it wakes, and when the question changes."
        ),
    ] = None


class Restart(Section):
    """What happens when an engine that had been ready exits."""

    policy: Annotated[
        Literal["always", "on-failure", "never"],
        Field(description="When to start it again: after every exit, only after a failure, or never."),
    ] = "always"
    max_attempts: Annotated[
        Int, Field(ge=0, description="Restarts inside `window` before sage gives up; 0 gives up at once.")
    ] = 5
    window: Annotated[PositiveDuration, Field(description="The time over which attempts are counted.")] = (
        600.0
    )
    backoff: Annotated[
        Duration,
        Field(
            description="The longest wait before the second restart inside `window`, doubled for each "
            "further one; the first comes at once. The wait itself is drawn from between 0 and this."
        ),
    ] = 1.0
    backoff_max: Annotated[Duration, Field(description="The longest wait between two restarts.")] = 60.0


class Rollout(Section):
    """How a changed engine is replaced."""

    strategy: Annotated[
        Literal["auto", "surge", "sleep-swap", "recreate"],
        Field(
            description="`surge` starts the new one beside the old one, `sleep-swap` (vllm on a GPU) while "
            "the old one sleeps and can be woken, `recreate` stops the old one first. `auto` takes the first "
            "that fits into memory; an engine can sleep if it was started with `enable-sleep-mode`, which "
            "`sleep-swap` adds."
        ),
    ] = "auto"
    hold: Annotated[
        Duration,
        Field(
            description="How long the gateway holds a request while no replica is ready. Default of an "
            "engine on demand: its `health.startup_timeout`."
        ),
    ] = 30.0
    drain: Annotated[Duration, Field(description="How long requests in flight may finish before a stop.")] = (
        30.0
    )


class Queue(Section):
    """Where requests wait while every replica has `max_concurrent` of them. A full queue answers 429."""

    policy: Annotated[
        Literal["fifo", "priority", "slo_aware", "cost_optimized", "adaptive", "hybrid"],
        Field(
            description="Who is next: the oldest (`fifo`), the highest `X-Request-Priority` (`priority`), "
            "the earliest `X-SLO-Deadline-Ms` (`slo_aware`), the least work (`cost_optimized`), one of these "
            "by what waits (`adaptive`), or chat by priority with embeddings in batches between (`hybrid`). "
            "None of them lets a request starve."
        ),
    ] = "fifo"
    size: Annotated[
        Int, Field(ge=0, le=100_000, description="Requests that wait at most; 0: none, all others get 429.")
    ] = 1000
    timeout: Annotated[
        PositiveDuration, Field(description="How long one request waits at most before it gets 429.")
    ] = 60.0


class Routing(Section):
    """How the gateway shares requests among engines that serve the same model name."""

    policy: Annotated[
        Literal["least_inflight", "round_robin", "prefix_affinity", "session_affinity"],
        Field(
            description="How a replica is picked: by the fewest requests in flight (`least_inflight`), in "
            "turn (`round_robin`), the same one for the same beginning of a prompt (`prefix_affinity`) or "
            "for the same session (`session_affinity`: header `X-Session-ID`, or the field `session_id` or "
            "`user`). Affinity gives way where its replica has much more to do than the others."
        ),
    ] = "least_inflight"
    weight: Annotated[
        Int, Field(ge=1, le=1000, description="Share of this engine against others of its pool.")
    ] = 1
    queue: Annotated[Queue, Field(description="How requests wait while all replicas are full.")] = Queue()
    first_byte_timeout: Annotated[
        Duration,
        Field(
            description="How long a replica may take until its reply begins; then the request fails. 0: as "
            "long as it takes. Most engines begin a reply that is not streamed when it is complete."
        ),
    ] = 0.0
    idle_timeout: Annotated[
        Duration,
        Field(
            description="The longest pause between two pieces of a reply; then the reply is broken off. "
            "0: no limit."
        ),
    ] = 0.0


class Lora(Section):
    """A LoRA adapter: loaded into the running engine, and a model name for clients."""

    name: Annotated[Text, Field(description="What clients send as `model`.")]
    path: Annotated[
        Text, Field(description="The adapter's directory (PEFT: `adapter_config.json` and weights).")
    ]
    rank: Annotated[
        Int | None,
        Field(ge=1, description="Its rank. Default: what its `adapter_config.json` says."),
    ] = None


class OnDemand(Section):
    """Loaded when a request asks for it, put aside when it is idle or when another one needs its place.

    Put aside means asleep where the engine can sleep (vllm on a GPU, which gets `enable-sleep-mode` unless
    `args` say false), else stopped. `sage watch`, or `sage gateway start --stack`, does it.
    """

    idle_ttl: Annotated[
        PositiveDuration, Field(description="Put aside after this time without a request.")
    ] = 600.0
    min_residency: Annotated[
        Duration | None,
        Field(
            description="How long it stays, once loaded, though requests wait for another engine in its "
            "place. Default: 2s where it can sleep, else 30s."
        ),
    ] = None
    preload: Annotated[
        Bool, Field(description="Loaded by `sage apply` where there is room, though nobody asked.")
    ] = False
    priority: Annotated[
        Int,
        Field(
            ge=-1000,
            le=1000,
            description="Who has less is put aside first; an engine never makes one with more give way.",
        ),
    ] = 0
    pin: Annotated[Bool, Field(description="Once loaded it stays: neither idle time nor others end it.")] = (
        False
    )
