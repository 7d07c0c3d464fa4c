"""The planner: `reconcile(desired, observed, policy) -> Plan`, a pure function of its arguments."""

from collections import defaultdict
from dataclasses import replace

from sage_reconcile.model.actions import Blocked, Kept, Plan, Step, Verdict
from sage_reconcile.model.desired import DesiredEngine, DesiredState, Device, ReplicaId
from sage_reconcile.model.observed import Health, ObservedLaunch, ObservedState
from sage_reconcile.plan.classify import Case, Decision, classify, primary
from sage_reconcile.plan.demand import Wish, Wishes, as_wished, demand_notes
from sage_reconcile.plan.external import external_notes, steps_for_left
from sage_reconcile.plan.memory import Ledger
from sage_reconcile.plan.moves import Moves
from sage_reconcile.plan.names import NO_NAMES, given_names
from sage_reconcile.plan.order import planning_order
from sage_reconcile.plan.place import NoSpot, Placer, violation, wanted_gpus, wanted_port
from sage_reconcile.plan.policy import Policy
from sage_reconcile.plan.ports import Ports
from sage_reconcile.plan.programs import missing_program
from sage_reconcile.plan.remedies import with_remedies
from sage_reconcile.plan.room import plan_on_demand
from sage_reconcile.plan.steps import in_reading_order, reap_step, stop_step
from sage_reconcile.plan.timeline import timeline

_DEFAULT = Policy()
_SERVES = (Health.READY, Health.ASLEEP)
_STARTS = frozenset({Verdict.START, Verdict.REPLACE, Verdict.AWAIT, Verdict.WAKE})


def reconcile(desired: DesiredState, observed: ObservedState, policy: Policy = _DEFAULT) -> Plan:
    """What must be done so that `observed` becomes `desired`: nothing more, nothing less.

    Equal arguments give equal plans. Only launches of `desired.stack` are changed; everything else is
    counted (memory, ports) and left alone. What cannot be done is `blocked`, with the arithmetic.
    """

    def planned(other: DesiredState) -> Plan:
        return plan_on_demand(
            other, observed, policy, lambda wishes: _Planning(other, observed, policy, wishes).plan()
        )

    return with_remedies(planned(desired), desired, observed, planned)


class _Planning:
    """One run of the planner: everything that is decided so far."""

    def __init__(
        self, desired: DesiredState, observed: ObservedState, policy: Policy, wishes: Wishes
    ) -> None:
        self.desired = desired
        self.wishes = wishes
        self.observed = observed
        self.policy = policy
        self.ledger = Ledger(observed)
        pinned = {wanted_port(e, r) for e in desired.engines for r in range(e.replicas)} - {None}
        ports = Ports(observed, frozenset(port for port in pinned if port is not None))
        self.placer = Placer(observed, self.ledger, ports)
        self.moves = Moves(self.placer)
        self.steps: list[Step] = []
        self.blocked: list[Blocked] = []
        self.kept: list[Kept] = []
        self.launches: dict[ReplicaId, list[ObservedLaunch]] = defaultdict(list)
        for launch in observed.launches:
            if launch.replica.stack == desired.stack:
                self.launches[launch.replica].append(launch)
        self.exits = dict(observed.exits)
        self.names = given_names(desired, observed.routing)
        self.holds = dict(policy.hold)
        gaps = sorted(observed.gaps, key=lambda gap: (gap.node, gap.what, gap.reason))
        self.gaps = {gap.node: gap for gap in gaps if gap.what in ("processes", "node")}
        self.step_of: dict[str, list[str]] = defaultdict(list)
        self.stuck: dict[str, str] = {}

    def plan(self) -> Plan:
        wanted = {
            ReplicaId(self.desired.stack, e.name, r) for e in self.desired.engines for r in range(e.replicas)
        }
        self._reap()
        self._stop_undesired(wanted)
        for step in steps_for_left(self.desired, self.observed.routing):
            if self._is_target(step.replica.engine):
                self._add(step)
        leaving = frozenset(name for name, wish in self.wishes.items() if wish.is_aside)
        for engine in planning_order(self.desired, self._sizes(), leaving):
            if self._is_target(engine.name):
                self._plan_engine(engine)
        steps = in_reading_order(self.steps)
        return Plan(
            stack=self.desired.stack,
            steps=tuple(steps),
            blocked=tuple(sorted(self.blocked, key=lambda b: b.replica)),
            kept=tuple(sorted(self.kept, key=lambda k: k.replica)),
            memory=timeline(self.ledger, {step.id: (*step.after, *step.behind) for step in steps}),
            gaps=tuple(sorted(self.observed.gaps, key=lambda gap: (gap.node, gap.what, gap.reason))),
            notes=(*external_notes(self.observed), *demand_notes(self.desired, self.observed)),
            described=self.observed.is_described,
        )

    def _is_target(self, engine: str) -> bool:
        return self.policy.targets is None or engine in self.policy.targets

    def _sizes(self) -> dict[str, int]:
        """Memory that each engine takes of the largest GPU here, times its GPUs."""
        largest = max((gpu.total_mib for gpu in self.observed.gpus), default=0)
        return {
            engine.name: (self.ledger.need(engine.launch, largest) or 0) * engine.launch.gpu_count
            for engine in self.desired.engines
            if engine.launch.device is not Device.CPU
        }

    def _reap(self) -> None:
        for orphan in sorted(self.observed.orphans, key=lambda o: (o.replica, o.mark.launch)):
            if orphan.replica.stack != self.desired.stack or not self._is_target(orphan.replica.engine):
                continue
            count = len(orphan.pids)
            cause = f"{count} process{'es' if count > 1 else ''} left over: the supervisor is gone"
            step = reap_step(orphan, cause)
            self.moves.give_back(orphan, step.id)
            self._add(step)

    def _stop_undesired(self, wanted: set[ReplicaId]) -> None:
        for replica in sorted(self.launches.keys() - wanted):
            if not self._is_target(replica.engine):
                continue
            engine = self.desired.engine(replica.engine)
            cause = f"replicas is now {engine.replicas}" if engine else "no longer in the stack file"
            for launch in sorted(self.launches[replica], key=lambda one: one.mark.launch):
                drain = launch.live.drain if launch.live else 30.0
                self._stop(launch, cause, drain)

    def _stop(
        self,
        launch: ObservedLaunch,
        cause: str,
        drain: float,
        after: tuple[str, ...] = (),
        must_drain: bool = False,
    ) -> None:
        node = launch.mark.placement.node
        if node in self.gaps:
            self.kept.append(Kept(launch.replica, Verdict.HOLD, self.gaps[node].reason))
            return
        step = stop_step(launch, cause, drain, after, must_drain)
        self.moves.give_back(launch, step.id)
        self._add(step)

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        if step.verdict in _STARTS:
            self.step_of[step.replica.engine].append(step.id)

    def _plan_engine(self, given: DesiredEngine) -> None:
        stuck = next((name for name in given.after if name in self.stuck), None)
        previous: str | None = None  # replicas of one engine change one at a time
        for number in range(given.replicas):
            replica = ReplicaId(self.desired.stack, given.name, number)
            launches = self.launches.get(replica, [])
            launch = primary(launches, given)
            engine = as_wished(given, self.wishes.get(given.name), launch)
            decision = classify(self._case(engine, replica, launch))
            if stuck and decision.verdict in (Verdict.START, Verdict.REPLACE):
                self._leave_dependent(replica, stuck)
                continue
            step = self._step(engine, replica, launch, decision, previous)
            if step is not None:
                self._add(step)
                previous = step.id if step.verdict in _STARTS else previous
            self._stop_others(engine, launch, decision, step)

    def _leave_dependent(self, replica: ReplicaId, on: str) -> None:
        if self.stuck[on] == "held":
            self.kept.append(Kept(replica, Verdict.HOLD, f"depends on {on}, which is held"))
            self.stuck[replica.engine] = "held"
        else:
            self._block(replica, f"depends on {on}, which is blocked")

    def _case(self, engine: DesiredEngine, replica: ReplicaId, launch: ObservedLaunch | None) -> Case:
        misplaced = None
        if launch is not None:
            pinned = wanted_gpus(engine, replica.replica)
            misplaced = violation(engine, launch)
            if misplaced is None and pinned and not self.placer.is_on(launch, pinned):
                now = ", ".join(launch.mark.placement.gpus) or "none"
                misplaced = f"gpus changed: {now} -> {', '.join(map(str, pinned))}"
        return Case(
            engine=engine,
            replica=replica,
            launch=launch,
            hold=self._hold(engine, replica, launch),
            misplaced=misplaced,
            stop_cause=self.policy.stop_cause,
            is_restart=engine.name in self.policy.restart,
            last_exit=self.exits.get(replica),
            at=self.observed.at,
            routing=self.observed.routing,
            names=self.names.get(engine.name, NO_NAMES),
            lease=self.observed.lease_of(launch.mark.placement.gpus) if launch else None,
            demand=self._wish(engine).cause,
        )

    def _wish(self, engine: DesiredEngine) -> Wish:
        return self.wishes.get(engine.name) or Wish(cause="")

    def _hold(self, engine: DesiredEngine, replica: ReplicaId, launch: ObservedLaunch | None) -> str | None:
        if replica in self.holds:
            return self.holds[replica]
        if launch is not None:
            gap = self.gaps.get(launch.mark.placement.node)
            return gap.reason if gap else self._wish(engine).hold or None
        if engine.launch.is_external:
            return None  # its routes need no look at processes, and are published with or without a step
        # A replica that is not seen may run where nothing can be seen.
        return next((gap.reason for gap in self.gaps.values()), None) or self._wish(engine).hold or None

    def _step(
        self,
        engine: DesiredEngine,
        replica: ReplicaId,
        launch: ObservedLaunch | None,
        decision: Decision,
        previous: str | None,
    ) -> Step | None:
        verdict = decision.verdict
        if verdict in (Verdict.KEEP, Verdict.HOLD):
            self.kept.append(Kept(replica, verdict, decision.cause))
            if verdict is Verdict.HOLD and (launch is None or launch.health is not Health.READY):
                self.stuck[engine.name] = "held"
            return None
        if launch is not None and verdict is Verdict.STOP:
            self._stop(launch, decision.cause, engine.live.drain, must_drain=self._wish(engine).is_aside)
            return None
        missing = missing_program(engine, self.observed)
        if missing and verdict in (Verdict.START, Verdict.REPLACE):
            self._block(replica, missing)
            return None
        step = self.moves.step(engine, replica, launch, decision)
        if isinstance(step, NoSpot):
            self._leave_without_place(engine, launch, replica, decision, step)
            return None
        after = {*step.after, *self._dependencies(engine)}
        if previous and verdict is Verdict.REPLACE:
            after.add(previous)
        return replace(step, after=tuple(sorted(after)))

    def _leave_without_place(
        self,
        engine: DesiredEngine,
        launch: ObservedLaunch | None,
        replica: ReplicaId,
        decision: Decision,
        why: NoSpot,
    ) -> None:
        """Blocked; but what only a lease is in the way of waits for its end, and what is there leaves."""
        if launch is not None and decision.leaves:
            self._stop(launch, decision.cause, engine.live.drain)
        elif engine.launch.device is not Device.CPU and self._is_leased():
            self.kept.append(Kept(replica, Verdict.HOLD, f"waits for a GPU: {why.reason}", lacks_place=True))
        else:
            self._block(replica, why.reason, why.lacks_memory)
            return
        self.stuck[engine.name] = "held"

    def _is_leased(self) -> bool:
        return self.observed.lease_of(gpu.uuid for gpu in self.observed.gpus) is not None

    def _dependencies(self, engine: DesiredEngine) -> tuple[str, ...]:
        return tuple(sorted(step for name in engine.after for step in self.step_of.get(name, ())))

    def _block(self, replica: ReplicaId, reason: str, lacks_memory: bool = False) -> None:
        self.blocked.append(Blocked(replica, reason, lacks_memory))
        self.stuck[replica.engine] = "blocked"

    def _stop_others(
        self, engine: DesiredEngine, chosen: ObservedLaunch | None, decision: Decision, step: Step | None
    ) -> None:
        """Ends the other launches of the replica, once the chosen one serves; none while that is not sure."""
        if chosen is None:
            return
        cause, after = "superseded: left by an interrupted rollout", (step.id,) if step else ()
        if decision.verdict is Verdict.STOP:
            cause = decision.cause
        elif step is None and not (decision.verdict is Verdict.KEEP and chosen.health in _SERVES):
            return
        for launch in sorted(self.launches[chosen.replica], key=lambda one: one.mark.launch):
            if launch is not chosen:
                self._stop(launch, cause, engine.live.drain, after)
