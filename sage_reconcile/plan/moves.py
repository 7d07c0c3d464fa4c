"""Steps that start, replace or change an engine: found a place, counted, and put into actions."""

from sage_reconcile.model.actions import Action, Step, Stop, Verdict
from sage_reconcile.model.desired import DesiredEngine, ReplicaId, Strategy
from sage_reconcile.model.observed import Health, ObservedLaunch, Orphan
from sage_reconcile.plan.classify import Decision
from sage_reconcile.plan.expected import Times
from sage_reconcile.plan.external import reroute_step
from sage_reconcile.plan.place import NoSpot, Placer
from sage_reconcile.plan.steps import in_place, start_actions, stop_actions, swap_actions
from sage_reconcile.plan.strategy import choose


class Moves:
    """Makes steps and counts what they take and give back. `after` has only what memory and ports need."""

    def __init__(self, placer: Placer) -> None:
        self._placer = placer
        self._times = Times(placer.ledger)

    def step(
        self, engine: DesiredEngine, replica: ReplicaId, launch: ObservedLaunch | None, decision: Decision
    ) -> Step | NoSpot:
        """The step that carries the decision out, or why there is no place for it."""
        if engine.launch.is_external:
            return reroute_step(replica, decision.cause, decision.changes)
        if launch is None or decision.verdict is Verdict.START:
            return self._start(engine, replica, launch, decision)
        if decision.verdict is Verdict.REPLACE:
            return self._replace(engine, launch, decision)
        return self._in_place(engine, launch, decision)

    def give_back(self, leaving: ObservedLaunch | Orphan, step: str) -> None:
        """`step` ends `leaving`: its memory and port are for those that come after the step."""
        self._placer.ledger.give_back(leaving, step)
        self._placer.ports.give_back(leaving, step)

    def _start(
        self, engine: DesiredEngine, replica: ReplicaId, ending: ObservedLaunch | None, decision: Decision
    ) -> Step | NoSpot:
        spot = self._placer.find(engine, replica.replica, evict=ending)
        if isinstance(spot, NoSpot):
            return spot
        step = f"start:{replica.short}"
        self._placer.claim(spot, step, replica.short, ending)
        first: tuple[Action, ...] = (Stop(ending, 0.0),) if ending else ()
        return Step(
            step,
            Verdict.START,
            replica,
            decision.cause,
            (*first, *start_actions(engine, replica, spot.placement, spot.counted_mib)),
            spot.after,
            placement=spot.placement,
            notes=spot.notes,
            behind=spot.behind,
            expected=self._times.start(replica, engine.launch, spot.placement),
        )

    def _replace(self, engine: DesiredEngine, old: ObservedLaunch, decision: Decision) -> Step | NoSpot:
        replica = old.replica
        choice = choose(engine, old, self._placer, decision.stays)
        if isinstance(choice, NoSpot):
            return choice
        spot, step = choice.spot, f"replace:{replica.short}"
        launch = start_actions(engine, replica, spot.placement, spot.counted_mib)
        leave = stop_actions(old, engine.live.drain)
        if choice.strategy is Strategy.SURGE:
            self._placer.claim(spot, step, replica.short)
            self.give_back(old, step)
            actions: tuple[Action, ...] = (*launch, *leave)
        elif choice.strategy is Strategy.SLEEP_SWAP:
            self._placer.claim(spot, step, replica.short, old, sleeps=True)
            actions = swap_actions(old, engine.live.drain, launch)
        else:
            self._placer.claim(spot, step, replica.short, old)
            actions = (*leave, *launch)
        return Step(
            id=step,
            verdict=Verdict.REPLACE,
            replica=replica,
            cause=decision.cause,
            actions=actions,
            after=spot.after,
            strategy=choice.strategy,
            reason=choice.reason,
            changes=decision.changes,
            placement=spot.placement,
            notes=spot.notes,
            behind=spot.behind,
            expected=self._times.replacement(engine, old, spot.placement, choice.strategy),
        )

    def _in_place(self, engine: DesiredEngine, launch: ObservedLaunch, decision: Decision) -> Step | NoSpot:
        step = f"{decision.verdict}:{launch.replica.short}"
        after: tuple[str, ...] = ()
        behind: tuple[str, ...] = ()
        if decision.verdict is Verdict.WAKE:
            spot = self._placer.wake(launch, step)
            if isinstance(spot, NoSpot):
                return spot
            after, behind = spot.after, spot.behind
        elif decision.verdict is Verdict.SLEEP:
            self._placer.ledger.rest(launch, step)
        elif launch.health is Health.STARTING:
            behind = self._placer.queue(launch, step)
        return Step(
            step,
            decision.verdict,
            launch.replica,
            decision.cause,
            in_place(engine, launch, decision.verdict),
            after,
            changes=decision.changes,
            behind=behind,
            expected=self._times.wake(launch) if decision.verdict is Verdict.WAKE else None,
        )
