"""How many seconds a step will take, and how long an engine will be away, from what was measured before."""

from collections.abc import Callable

from sage_reconcile.model.actions import Expected
from sage_reconcile.model.desired import DesiredEngine, LaunchSpec, ReplicaId, Strategy, fingerprint
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.observed import ObservedLaunch, Placement
from sage_reconcile.plan.memory import Ledger

Seconds = Callable[[Fact], float | None]


class Times:
    """What is known of the seconds of one fleet. Draining is left out: what is in flight decides it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._facts = sorted(ledger.known.all(), key=lambda fact: (fact.at, fact.key), reverse=True)

    def start(self, replica: ReplicaId, spec: LaunchSpec, place: Placement) -> Expected | None:
        """Of a start; None where nothing like it was measured."""
        seconds = self._starting(replica, spec, place)
        return None if seconds is None else Expected(None, seconds)

    def wake(self, launch: ObservedLaunch) -> Expected | None:
        seconds = self._like(
            launch.replica, launch.mark.spec, launch.mark.placement, lambda f: f.wake_seconds
        )
        return None if seconds is None else Expected(None, seconds)

    def replacement(
        self, engine: DesiredEngine, old: ObservedLaunch, place: Placement, strategy: Strategy
    ) -> Expected:
        """Of a replacement: the start takes long; stopping and sleeping count where they are known."""
        start = self._starting(old.replica, engine.launch, place)
        where = (old.replica, old.mark.spec, old.mark.placement)
        stop = self._like(*where, lambda fact: fact.stop_seconds) or 0.0
        sleep = self._like(*where, lambda fact: fact.sleep_seconds) or 0.0
        away = {Strategy.SURGE: None, Strategy.SLEEP_SWAP: sleep, Strategy.RECREATE: stop}[strategy]
        work = None if start is None else start + stop + (sleep if strategy is Strategy.SLEEP_SWAP else 0.0)
        if away is None or engine.replicas > 1:
            return Expected(0.0, work, 0.0)
        outage = None if start is None else start + away
        refused = None if outage is None else max(0.0, outage - engine.route.hold)
        return Expected(outage, work, refused, engine.route.hold)

    def _starting(self, replica: ReplicaId, spec: LaunchSpec, place: Placement) -> float | None:
        return self._like(replica, spec, place, lambda fact: fact.start_seconds)

    def _like(self, replica: ReplicaId, spec: LaunchSpec, place: Placement, seconds: Seconds) -> float | None:
        """Of this very launch; else of the engine before an edit; else of the same model elsewhere."""
        if not self._facts:
            return None
        totals = {
            account.gpu.total_mib
            for uuid in place.gpus
            if (account := self._ledger.account(place.node, uuid)) is not None
        } or {0}
        near = [
            fact
            for fact in self._facts
            if fact.gpu_total_mib in totals
            and (fact.model, fact.runtime) == (spec.model, spec.runtime)
            and seconds(fact) is not None
        ]
        who, same = f"{replica.stack}/{replica.engine}", fingerprint(spec)
        near.sort(key=lambda fact: (fact.fingerprint != same, fact.engine != who))
        return seconds(near[0]) if near else None
