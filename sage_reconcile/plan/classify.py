"""What to do with each replica: one ordered table, first match wins, the last rule is total."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sage_reconcile.model.actions import Verdict
from sage_reconcile.model.desired import DesiredEngine, EngineState, ReplicaId
from sage_reconcile.model.observed import LOST, Health, LastExit, Lease, ObservedLaunch
from sage_reconcile.model.routing import RoutingTable
from sage_reconcile.plan.adapters import adapter_differences
from sage_reconcile.plan.difference import differences, route_differences
from sage_reconcile.plan.external import external_differences
from sage_reconcile.plan.names import NO_NAMES, Names


@dataclass(frozen=True, slots=True)
class Case:
    """All that the rules may look at. `launch` is the replica's primary launch, None when it has none.

    `hold` is why the replica must be left alone, `misplaced` what the file pins and the launch is not,
    `lease` that of a GPU of the launch, `demand` why an engine on demand is to be as its state says.
    """

    engine: DesiredEngine
    replica: ReplicaId
    launch: ObservedLaunch | None
    hold: str | None = None
    misplaced: str | None = None
    is_restart: bool = False
    stop_cause: str = ""
    last_exit: LastExit | None = None
    at: float = 0.0
    routing: RoutingTable | None = None
    names: Names = NO_NAMES
    lease: Lease | None = None
    demand: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """`stays`: a replacement has to take the place of the old one. `leaves`: the old one ends, even where
    the new one has no place."""

    verdict: Verdict
    cause: str
    changes: tuple[str, ...] = ()
    stays: bool = False
    leaves: bool = False


Rule = Callable[[Case], Decision | None]


def primary(launches: Iterable[ObservedLaunch], engine: DesiredEngine | None) -> ObservedLaunch | None:
    """The launch that embodies the replica when there are several (an interrupted rollout leaves two):
    the right one before an outdated one, one that serves before one that does not, the newest."""

    def rank(launch: ObservedLaunch) -> tuple[bool, bool, bool, float, str]:
        mark = launch.mark
        is_right = engine is not None and engine.is_embodied_by(mark.fingerprint, mark.spec)
        is_alive = launch.health is not Health.EXITED
        serves = launch.health in (Health.READY, Health.ASLEEP)
        return is_alive, is_right, serves, launch.supervisor_started, launch.mark.launch

    return max(launches, key=rank, default=None)


def hold_what_cannot_be_seen(case: Case) -> Decision | None:
    return Decision(Verdict.HOLD, case.hold) if case.hold else None


def keep_external(case: Case) -> Decision | None:
    if not case.engine.launch.is_external:
        return None
    if case.launch is not None:
        return Decision(Verdict.STOP, f"now external: {case.engine.launch.url} serves it")
    changes = external_differences(case.routing, case.replica, case.engine, case.names)
    if changes:
        stopped = "state: stopped; " if case.engine.state is EngineState.STOPPED else ""
        return Decision(Verdict.UPDATE, f"{stopped}route: " + "; ".join(changes), changes)
    return Decision(Verdict.KEEP, "external: probed and routed, never owned")


def stop_what_is_to_be_stopped(case: Case) -> Decision | None:
    if case.engine.state is not EngineState.STOPPED:
        return None
    if case.launch is None:
        return Decision(Verdict.KEEP, case.demand or "stopped")
    return Decision(Verdict.STOP, case.demand or case.stop_cause)


def start_what_is_missing(case: Case) -> Decision | None:
    why = f"{case.demand}; not running" if case.demand else "not running"
    if case.launch is None and case.last_exit:
        if case.last_exit.cause == LOST:
            return Decision(Verdict.START, f"{why}: {LOST}")
        ago = duration(case.at - case.last_exit.at)
        return Decision(Verdict.START, f"{why}: {case.last_exit.summary}, {ago} ago")
    if case.launch is None:
        return Decision(Verdict.START, why)
    if case.launch.health is Health.EXITED:
        return Decision(Verdict.START, f"{why}: {case.launch.message or 'its process is ending'}")
    return None


def leave_what_is_leased(case: Case) -> Decision | None:
    """The GPU is somebody else's for a while: the engine moves, sleeps or ends."""
    if case.launch is None or case.lease is None:
        return None
    cause = f"its GPU is {case.lease}"
    if case.lease.may_sleep and case.launch.health is Health.ASLEEP:
        return Decision(Verdict.HOLD, f"asleep: {cause}")
    if case.lease.may_sleep and case.launch.mark.spec.can_sleep and case.launch.health is Health.READY:
        return Decision(Verdict.SLEEP, cause)
    return Decision(Verdict.REPLACE, cause, leaves=True)


def replace_what_differs(case: Case) -> Decision | None:
    if case.launch is None:
        return None
    mark = case.launch.mark
    if case.engine.is_embodied_by(mark.fingerprint, mark.spec):
        return None
    changes = differences(mark.spec, case.engine.launch)
    return Decision(Verdict.REPLACE, "; ".join(changes) or "launched by another version of sage", changes)


def replace_what_is_misplaced(case: Case) -> Decision | None:
    return Decision(Verdict.REPLACE, case.misplaced, (case.misplaced,)) if case.misplaced else None


def replace_what_is_to_restart(case: Case) -> Decision | None:
    return Decision(Verdict.REPLACE, "restart asked for", stays=True) if case.is_restart else None


def sleep_or_wake(case: Case) -> Decision | None:
    if case.launch is None:
        return None
    if case.engine.state is EngineState.ASLEEP and case.launch.health is Health.READY:
        return Decision(Verdict.SLEEP, case.demand or "state: asleep")
    if case.engine.state is EngineState.RUNNING and case.launch.health is Health.ASLEEP:
        return Decision(Verdict.WAKE, case.demand or "state: running")
    return None


def update_live_settings(case: Case) -> Decision | None:
    """What changes in the running launch: settings of its supervisor, adapters of its engine."""
    live = case.launch.live if case.launch else None
    settings = () if live is None or live == case.engine.live else differences(live, case.engine.live)
    adapters = adapter_differences(case.engine, case.launch, case.routing) if case.launch else ()
    parts = ["live settings: " + "; ".join(settings)] if settings else []
    parts += ["adapters: " + "; ".join(adapters)] if adapters else []
    return Decision(Verdict.UPDATE, "; ".join(parts), (*settings, *adapters)) if parts else None


def update_route(case: Case) -> Decision | None:
    if case.launch is None or case.routing is None:
        return None
    changes = route_differences(case.routing, case.launch.mark.id, case.engine.route, case.names)
    return Decision(Verdict.UPDATE, "route: " + "; ".join(changes), changes) if changes else None


def await_what_is_on_its_way(case: Case) -> Decision | None:
    if case.launch is None or case.launch.health in (Health.READY, Health.ASLEEP, Health.UNKNOWN):
        return None
    words = {
        Health.STARTING: "is starting",
        Health.FAILING: "is failing its probes",
        Health.BACKOFF: "crashed",
    }
    for_long = duration(case.at - case.launch.since)
    message = f": {case.launch.message}" if case.launch.message else ""
    return Decision(Verdict.AWAIT, f"{words.get(case.launch.health, '')} for {for_long}{message}")


def keep_the_rest(case: Case) -> Decision | None:
    note = case.launch.message if case.launch and case.launch.health is Health.UNKNOWN else ""
    return Decision(Verdict.KEEP, note)


RULES: tuple[Rule, ...] = (
    hold_what_cannot_be_seen,
    keep_external,
    stop_what_is_to_be_stopped,
    start_what_is_missing,
    leave_what_is_leased,
    replace_what_differs,
    replace_what_is_misplaced,
    replace_what_is_to_restart,
    sleep_or_wake,
    update_live_settings,
    update_route,
    await_what_is_on_its_way,
    keep_the_rest,
)


def classify(case: Case) -> Decision:
    """The first rule that has something to say."""
    decisions = (rule(case) for rule in RULES)
    return next(decision for decision in decisions if decision is not None)


def duration(seconds: float) -> str:
    """Seconds as people say them: "8 s", "2 min", "3 h", "4 d"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
