"""A validated stack to the desired state, in named passes. Pure: no clock, no files, no environment."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sage_reconcile.model.adapters import LORA_RANK, LORA_SLOTS, Adapter
from sage_reconcile.model.desired import (
    CanarySpec,
    DesiredEngine,
    DesiredState,
    Device,
    EngineState,
    HealthSpec,
    Kind,
    LaunchSpec,
    LiveSpec,
    OnDemandSpec,
    PlacementSpec,
    ProbeKind,
    RestartPolicy,
    RestartSpec,
    RouteSpec,
    Strategy,
    fingerprint,
)
from sage_reconcile.model.gateway import GatewaySpec, KeySpec, SessionsSpec
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.gateway import Gateway
from sage_reconcile.stack.lora import rank_that_holds
from sage_reconcile.stack.schema import Engine, Runtime
from sage_reconcile.stack.select import client_names, pick_runtime, program_of, wants_cpu

SLEEP_FLAG = "enable-sleep-mode"
LEAST_SLOTS = 4
"""Adapters that vLLM can use at once, where the file has fewer: room for those to come."""

RESIDENCY, RESIDENCY_OF_SLEEPERS = 30.0, 2.0
"""Seconds that an engine on demand stays at least: what putting it aside and back costs, many times over."""


@dataclass(frozen=True, slots=True)
class Draft:
    """One engine on its way: what the file says, its runtime, and what is resolved so far."""

    engine: Engine
    runtime: Runtime
    result: DesiredEngine

    def with_launch(self, launch: LaunchSpec) -> "Draft":
        return replace(self, result=replace(self.result, launch=launch))


def resolve(stack: StackFile) -> DesiredState:
    """The desired state of a stack; engines sorted by name, each with the fingerprint of its launch."""
    engines = (_resolve_engine(engine, stack) for engine in stack.model.engines)
    return DesiredState(
        stack=stack.name,
        engines=tuple(sorted(engines, key=lambda engine: engine.name)),
        gateway=_resolve_gateway(stack.model.gateway),
    )


def _resolve_gateway(gateway: Gateway) -> GatewaySpec:
    keys = (
        KeySpec(
            key.name,
            key.key or "",
            key.sha256 or "",
            key.models,
            key.requests_per_minute,
            key.tokens_per_minute,
            key.max_concurrent,
            key.admin,
        )
        for key in gateway.keys
    )
    given = gateway.sessions
    sessions = (
        SessionsSpec(given.enabled, given.url or "", given.max_turns, given.max_bytes) if given else None
    )
    return GatewaySpec(
        gateway.host,
        gateway.port,
        gateway.workers,
        gateway.api_keys,
        tuple(keys),
        gateway.cors_origins,
        sessions,
    )


def _resolve_engine(engine: Engine, stack: StackFile) -> DesiredEngine:
    runtime = pick_runtime(engine, stack.model.runtimes)
    if runtime is None:
        raise ValueError(f"a validated stack has no unknown runtime: {engine.runtime}")
    launch = LaunchSpec(Kind(engine.kind), runtime.kind, engine.model)
    draft = Draft(engine, runtime, DesiredEngine(engine.name, launch, RouteSpec(())))
    for step in PASSES:
        draft = step(draft)
    return draft.result


def merge_runtime(draft: Draft) -> Draft:
    """Program, command, environment and flags: the runtime's, with the engine's over them."""
    engine, runtime = draft.engine, draft.runtime
    is_command = runtime.kind == "command"
    launch = replace(
        draft.result.launch,
        python=runtime.python if runtime.version is None else None,
        program=program_of(runtime),
        command=(engine.command or runtime.command) if is_command else (),
        env=tuple(sorted({**runtime.env, **engine.env}.items())),
        args=tuple(sorted({**runtime.args, **engine.args}.items())),
        extra_args=engine.extra_args,
        cwd=engine.cwd,
    )
    return draft.with_launch(launch)


def pick_device(draft: Draft) -> Draft:
    """GPU or CPU, and the parallel sizes. A command that says nothing takes a GPU where there is one."""
    engine = draft.engine
    parallel = (engine.tensor_parallel, engine.pipeline_parallel)
    says_nothing = engine.use_gpu is None and engine.gpus == "auto" and engine.gpu_memory == "auto"
    if draft.runtime.kind == "external" or wants_cpu(engine):
        device = Device.CPU
    elif draft.runtime.kind == "command" and says_nothing and parallel == (1, 1):
        device = Device.PREFER_GPU
    else:
        device = Device.GPU
    launch = replace(
        draft.result.launch, device=device, tensor_parallel=parallel[0], pipeline_parallel=parallel[1]
    )
    return draft.with_launch(launch)


def size_memory(draft: Draft) -> Draft:
    """GPU memory as the file says; an engine on the CPU takes none, whatever defaults say."""
    launch = draft.result.launch
    on_gpu = launch.device is not Device.CPU
    return draft.with_launch(replace(launch, gpu_memory=draft.engine.gpu_memory if on_gpu else "auto"))


def enable_sleep(draft: Draft) -> Draft:
    """Whether the engine can sleep: vllm on a GPU, started with the flag; `state: asleep`, the strategy
    sleep-swap and on_demand add it."""
    launch = draft.result.launch
    if launch.runtime != "vllm" or launch.device is Device.CPU:
        return draft
    args = dict(launch.args)
    if draft.engine.state == "asleep" or draft.engine.rollout.strategy == "sleep-swap":
        args[SLEEP_FLAG] = True
    if draft.engine.on_demand is not None:
        args.setdefault(SLEEP_FLAG, True)
    can_sleep = args.get(SLEEP_FLAG, False) is not False
    return draft.with_launch(replace(launch, args=tuple(sorted(args.items())), can_sleep=can_sleep))


def enable_lora(draft: Draft) -> Draft:
    """Adapters, and the flags without which none can be loaded. Where the file does not give slots and rank,
    they are sized by the adapters."""
    adapters = draft.engine.lora
    if adapters is None or draft.runtime.kind != "vllm":
        return draft
    ranks = [adapter.rank for adapter in adapters if adapter.rank]
    sizes = {
        LORA_SLOTS: max(LEAST_SLOTS, len(adapters)),
        LORA_RANK: rank_that_holds(max(ranks, default=1)),
    }
    launch = draft.result.launch
    args = {**sizes, **dict(launch.args), "enable-lora": True}
    result = replace(
        draft.result,
        launch=replace(launch, args=tuple(sorted(args.items()))),
        lora=tuple(sorted(Adapter(adapter.name, adapter.path) for adapter in adapters)),
        sized=tuple(name for name in sizes if name not in dict(launch.args)),
    )
    return replace(draft, result=result)


def point_external(draft: Draft) -> Draft:
    """Where an external engine answers, and the reference to its key."""
    if draft.runtime.kind != "external":
        return draft
    engine = draft.engine
    return draft.with_launch(replace(draft.result.launch, url=engine.url, api_key=engine.api_key))


def pin_placement(draft: Draft) -> Draft:
    """The port and the GPUs that the file pins."""
    gpus = draft.engine.gpus if isinstance(draft.engine.gpus, tuple) else None
    return replace(draft, result=replace(draft.result, placement=PlacementSpec(draft.engine.port, gpus)))


def set_live(draft: Draft) -> Draft:
    """Probes, restarts and drain, which reach a running launch; the probe follows the engine's kind."""
    health, restart = draft.engine.health, draft.engine.restart
    probe = health.probe or ("embed" if draft.engine.kind == "embedding" else "generate")
    asked = health.canary
    canary = CanarySpec(asked.prompt, asked.expect, asked.max_tokens) if asked else None
    live = LiveSpec(
        health=HealthSpec(
            probe=ProbeKind(probe),
            path=health.path,
            startup_timeout=health.startup_timeout,
            interval=health.interval,
            timeout=health.timeout,
            failures=health.failures,
            canary=canary,
        ),
        restart=RestartSpec(
            policy=RestartPolicy(restart.policy),
            max_attempts=restart.max_attempts,
            window=restart.window,
            backoff=restart.backoff,
            backoff_max=restart.backoff_max,
        ),
        drain=draft.engine.rollout.drain,
    )
    return replace(draft, result=replace(draft.result, live=live))


def set_route(draft: Draft) -> Draft:
    """What the gateway is told: the names that clients send, sharing, limits, waiting, metadata."""
    engine = draft.engine
    routing, queue, rollout = engine.routing, engine.routing.queue, engine.rollout
    # Whoever asks for an engine on demand waits for its whole start.
    waits = engine.on_demand is not None and "hold" not in rollout.model_fields_set
    route = RouteSpec(
        names=client_names(engine),
        label=engine.label,
        weight=routing.weight,
        max_concurrent=engine.max_concurrent,
        policy=routing.policy,
        hold=engine.health.startup_timeout if waits else rollout.hold,
        metadata=tuple(sorted(engine.metadata.items())),
        queue_policy=queue.policy,
        queue_size=queue.size,
        queue_timeout=queue.timeout,
        first_byte_timeout=routing.first_byte_timeout,
        idle_timeout=routing.idle_timeout,
    )
    return replace(draft, result=replace(draft.result, route=route))


def set_lifecycle(draft: Draft) -> Draft:
    """Replicas, state, strategy and order."""
    engine = draft.engine
    result = replace(
        draft.result,
        replicas=engine.replicas,
        state=EngineState(engine.state),
        strategy=Strategy(engine.rollout.strategy),
        after=tuple(sorted(set(engine.depends_on))),
    )
    return replace(draft, result=result)


def set_on_demand(draft: Draft) -> Draft:
    """When the engine is loaded and put aside, where that is not always and never."""
    given = draft.engine.on_demand
    if given is None or draft.runtime.kind == "external":
        return draft
    usual = RESIDENCY_OF_SLEEPERS if draft.result.launch.can_sleep else RESIDENCY
    spec = OnDemandSpec(
        idle_ttl=given.idle_ttl,
        min_residency=usual if given.min_residency is None else given.min_residency,
        preload=given.preload,
        priority=given.priority,
        pin=given.pin,
    )
    return replace(draft, result=replace(draft.result, on_demand=spec))


def stamp(draft: Draft) -> Draft:
    """The fingerprint of the finished launch; the last pass, since it hashes the whole value."""
    return replace(draft, result=replace(draft.result, fingerprint=fingerprint(draft.result.launch)))


PASSES: tuple[Callable[[Draft], Draft], ...] = (
    merge_runtime,
    pick_device,
    size_memory,
    enable_sleep,
    enable_lora,
    point_external,
    pin_placement,
    set_live,
    set_route,
    set_lifecycle,
    set_on_demand,
    stamp,
)
