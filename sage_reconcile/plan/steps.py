"""Steps and the actions that they are made of."""

from collections.abc import Callable

from sage_reconcile.model.actions import (
    Action,
    AwaitReady,
    Drain,
    Launch,
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
from sage_reconcile.model.desired import DesiredEngine, DesiredState, ReplicaId
from sage_reconcile.model.observed import ObservedLaunch, Orphan, Placement
from sage_reconcile.plan.order import planning_order


def stop_actions(launch: ObservedLaunch, drain: float) -> tuple[Action, ...]:
    """No new requests, then none in flight, then no process."""
    return Withdraw(launch), Drain(launch, drain), Stop(launch, drain)


def stop_step(launch: ObservedLaunch, cause: str, drain: float, after: tuple[str, ...] = ()) -> Step:
    step = f"stop:{launch.replica.short}:{launch.mark.launch}"
    return Step(step, Verdict.STOP, launch.replica, cause, stop_actions(launch, drain), after)


def reap_step(orphan: Orphan, cause: str) -> Step:
    step = f"reap:{orphan.replica.short}:{orphan.mark.launch}"
    return Step(step, Verdict.REAP, orphan.replica, cause, (Reap(orphan),))


def start_actions(engine: DesiredEngine, replica: ReplicaId, place: Placement) -> tuple[Action, ...]:
    """A new process, waited for until it has answered, then routed to."""
    launch = Launch(replica, engine.launch, engine.fingerprint, place, engine.live)
    return launch, AwaitReady(replica, engine.live.health.startup_timeout), Reroute()


def in_place(engine: DesiredEngine, launch: ObservedLaunch, verdict: Verdict) -> tuple[Action, ...]:
    """What changes in a launch that goes on."""
    wait = AwaitReady(launch.replica, engine.live.health.startup_timeout, launch)
    if verdict is Verdict.SLEEP:
        return Withdraw(launch), Drain(launch, engine.live.drain), Sleep(launch), Reroute()
    if verdict is Verdict.WAKE:
        return Wake(launch), wait, Reroute()
    if verdict is Verdict.AWAIT:
        return wait, Reroute()
    is_live = launch.live is not None and launch.live != engine.live
    return (UpdateLive(launch, engine.live), Reroute()) if is_live else (Reroute(),)


def listing(desired: DesiredState) -> Callable[[Step], tuple[int, int, ReplicaId, str]]:
    """The order in which a plan is read: what ends, then engine by engine, each after what it waits for."""
    ranks = {engine.name: number for number, engine in enumerate(planning_order(desired, {}))}
    early = {Verdict.REAP: 0, Verdict.STOP: 1, Verdict.SLEEP: 2}

    def rank(step: Step) -> tuple[int, int, ReplicaId, str]:
        first = early.get(step.verdict, 3) if not step.after else 3
        return first, ranks.get(step.replica.engine, -1), step.replica, step.id

    return rank
