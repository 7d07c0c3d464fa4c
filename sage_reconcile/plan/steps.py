"""Steps and the actions that they are made of."""

from sage_reconcile.model.actions import (
    Action,
    AwaitReady,
    Drain,
    Launch,
    LoadLora,
    Reap,
    Reroute,
    Sleep,
    Step,
    Stop,
    UpdateLive,
    Verdict,
    Wake,
    Withdraw,
)
from sage_reconcile.model.desired import DesiredEngine, EngineState, ReplicaId
from sage_reconcile.model.observed import Health, ObservedLaunch, Orphan, Placement
from sage_reconcile.plan.adapters import adapter_actions


def stop_actions(launch: ObservedLaunch, drain: float, must_drain: bool = False) -> tuple[Action, ...]:
    """No new requests, then none in flight, then no process."""
    return Withdraw(launch), Drain(launch, drain, must_drain), Stop(launch, drain)


def swap_actions(old: ObservedLaunch, drain: float, launch: tuple[Action, ...]) -> tuple[Action, ...]:
    """The old one sleeps while the new one starts, and can be woken if that fails."""
    return Withdraw(old), Drain(old, drain), Sleep(old), *launch, Stop(old, 0.0)


def stop_step(
    launch: ObservedLaunch, cause: str, drain: float, after: tuple[str, ...] = (), must_drain: bool = False
) -> Step:
    step = f"stop:{launch.replica.short}:{launch.mark.launch}"
    return Step(step, Verdict.STOP, launch.replica, cause, stop_actions(launch, drain, must_drain), after)


def reap_step(orphan: Orphan, cause: str) -> Step:
    step = f"reap:{orphan.replica.short}:{orphan.mark.launch}"
    return Step(step, Verdict.REAP, orphan.replica, cause, (Reap(orphan),))


def start_actions(
    engine: DesiredEngine, replica: ReplicaId, place: Placement, counted_mib: int | None = None
) -> tuple[Action, ...]:
    """A new process, waited for until it has answered, then routed to, or put to sleep."""
    launch = Launch(replica, engine.launch, engine.fingerprint, place, engine.live, counted_mib)
    is_asleep = engine.state is EngineState.ASLEEP
    then = (Sleep(),) if is_asleep else tuple(LoadLora(adapter) for adapter in engine.lora or ())
    return launch, AwaitReady(replica, engine.live.health.startup_timeout), *then, Reroute()


def in_place(engine: DesiredEngine, launch: ObservedLaunch, verdict: Verdict) -> tuple[Action, ...]:
    """What changes in a launch that goes on: all of it, so that nothing is left for another pass."""
    is_live = launch.live is not None and launch.live != engine.live
    actions: list[Action] = [UpdateLive(launch, engine.live)] if is_live else []
    if verdict is Verdict.WAKE:
        actions.append(Wake(launch))
    is_on_its_way = launch.health in (Health.STARTING, Health.FAILING, Health.BACKOFF)
    if is_on_its_way or verdict is Verdict.WAKE:
        actions.append(AwaitReady(launch.replica, engine.live.health.startup_timeout, launch))
    if verdict is Verdict.SLEEP or (is_on_its_way and engine.state is EngineState.ASLEEP):
        drain = Drain(launch, engine.live.drain, is_required=engine.on_demand is not None)
        actions += [Withdraw(launch), drain, Sleep(launch)]
    if verdict is Verdict.SLEEP:
        return tuple(actions)  # it was withdrawn, and whoever waits for its memory waits for nothing more
    return *actions, *adapter_actions(engine, launch), Reroute(launch if verdict is Verdict.WAKE else None)


def in_reading_order(steps: list[Step]) -> list[Step]:
    """What ends first, then engine by engine as planned: each step after those that it waits for."""
    early = {Verdict.REAP: 0, Verdict.STOP: 1, Verdict.SLEEP: 2}
    return sorted(steps, key=lambda s: 3 if s.after or s.behind else early.get(s.verdict, 3))
