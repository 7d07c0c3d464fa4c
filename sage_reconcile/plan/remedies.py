"""What would make room for something that has none: edits of the stack, each tried before it is offered."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sage_reconcile.engines.base import arg
from sage_reconcile.engines.estimate import estimate
from sage_reconcile.engines.registry import runtime
from sage_reconcile.engines.vllm import share_mib
from sage_reconcile.model.actions import Blocked, Plan, Remedy
from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState, Strategy, fingerprint
from sage_reconcile.model.observed import Health, ObservedLaunch, ObservedState
from sage_reconcile.plan.memory import Account, Ledger, asleep_mib
from sage_reconcile.plan.place import wanted_gpus

Planner = Callable[[DesiredState], Plan]

OFFERED = 3
"""Remedies that are told: the cheapest."""

TRIALS = 2000
"""Plans that are made to try remedies, times the GPUs and engines that each has to look at."""

UNITS_MIB = 102.4
"""Sizes are offered in tenths of a GiB."""

# Cheapest first: what only the blocked engine notices, then what sleeps for a second, then what goes away.
RECREATE, LOWER, SLEEP, LOWER_OTHER, STOP = range(5)


def with_remedies(plan: Plan, desired: DesiredState, observed: ObservedState, planner: Planner) -> Plan:
    """The plan, with remedies for what lacks memory: planning again with one of them blocks that no more, and
    nothing else instead."""
    lacking = [blocked for blocked in plan.blocked if blocked.lacks_memory]
    if not lacking:
        return plan
    search = _Search(plan, desired, observed, planner)
    found = {blocked.replica: search.remedies(blocked) for blocked in lacking}
    blocked = tuple(replace(one, remedies=found.get(one.replica, ())) for one in plan.blocked)
    return replace(plan, blocked=blocked)


def applied(remedy: Remedy, desired: DesiredState) -> DesiredState:
    """The stack with the edit that the remedy is."""
    return replace(
        desired,
        engines=tuple(
            _edited(engine, remedy) if engine.name == remedy.engine else engine for engine in desired.engines
        ),
    )


def _edited(engine: DesiredEngine, remedy: Remedy) -> DesiredEngine:
    value = remedy.value
    if remedy.field == "state":
        return replace(engine, state=EngineState(value))
    if remedy.field == "rollout.strategy":
        return replace(engine, strategy=Strategy(value))
    if remedy.field == "gpu_memory":
        launch = replace(engine.launch, gpu_memory=int(float(value.removesuffix("GiB")) * 1024))
    else:
        flags = dict(engine.launch.args) | {"gpu-memory-utilization": float(value)}
        launch = replace(engine.launch, args=tuple(sorted(flags.items())))
    return replace(engine, launch=launch, fingerprint=fingerprint(launch))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A remedy that was not tried yet; among equals of `cost` the one that moves least memory comes first."""

    cost: int
    moves_mib: int
    remedy: Remedy


class _Search:
    """Remedies for one plan."""

    def __init__(self, plan: Plan, desired: DesiredState, observed: ObservedState, planner: Planner) -> None:
        self._plan = plan
        self._desired = desired
        self._planner = planner
        self._ledger = Ledger(observed)
        self._launches = [one for one in observed.launches if one.replica.stack == desired.stack]
        self._free = {(gpu.node, gpu.uuid): gpu.total_mib - gpu.after_mib for gpu in plan.memory}
        self._blocked = {one.replica for one in plan.blocked}
        size = len(plan.memory) + sum(engine.replicas for engine in desired.engines)
        self._trials = max(2, min(24, TRIALS // max(1, size)))

    def remedies(self, blocked: Blocked) -> tuple[Remedy, ...]:
        engine = self._desired.engine(blocked.replica.engine)
        if engine is None or not self._trials:
            return ()
        found: list[Remedy] = []
        candidates = sorted(
            self._candidates(engine), key=lambda c: (c.cost, c.moves_mib, c.remedy.engine, c.remedy.value)
        )
        for candidate in candidates:
            if len(found) == OFFERED or not self._trials:
                break
            if self._helps(candidate.remedy, blocked):
                found.append(candidate.remedy)
        return tuple(found)

    def _helps(self, remedy: Remedy, blocked: Blocked) -> bool:
        self._trials -= 1
        left = {one.replica for one in self._planner(applied(remedy, self._desired)).blocked}
        return blocked.replica not in left and left <= self._blocked

    def _candidates(self, engine: DesiredEngine) -> Iterator[_Candidate]:
        if engine.strategy is Strategy.SURGE:
            said = "it is replaced with an outage, instead of beside the old one"
            yield _Candidate(RECREATE, 0, Remedy(engine.name, "rollout.strategy", "recreate", said))
        room = self._room(engine)
        if room is not None:
            yield from self._lower(engine, room, LOWER)
        for other in self._desired.engines:
            if other.name != engine.name and other.state is EngineState.RUNNING:
                yield from self._of_other(engine, other)

    def _of_other(self, engine: DesiredEngine, other: DesiredEngine) -> Iterator[_Candidate]:
        held = self._held(other)
        if not held or other.name in engine.after:
            return
        freed = sum(held.values())
        own = [one for one in self._launches if one.replica.engine == other.name]
        if other.launch.can_sleep and own and all(one.health is Health.READY for one in own):
            kept = sum(self._asleep(one) for one in own)
            said = f"frees {freed - kept:,} MiB"
            yield _Candidate(SLEEP, freed - kept, Remedy(other.name, "state", "asleep", said))
        lack = self._lack(engine, held)
        if lack:
            need = min(self._ledger.need(other.launch, total) or 0 for total in self._totals(held))
            yield from self._lower(other, need - lack, LOWER_OTHER)
        yield _Candidate(STOP, freed, Remedy(other.name, "state", "stopped", f"frees {freed:,} MiB"))

    def _lower(self, engine: DesiredEngine, need_mib: int, cost: int) -> Iterator[_Candidate]:
        """Giving an engine that fills its share so much less that it takes `need_mib` of a GPU."""
        spec = engine.launch
        if not runtime(spec.runtime).fills:
            return
        total = min(self._ledger.sizes, default=0)
        files = self._ledger.models.get(spec.model)
        now, beyond = share_mib(spec, total), (runtime(spec.runtime).need_mib(spec, total) or 0)
        share = need_mib - max(0, beyond - now) - 1
        least = estimate(spec, files, total)
        if not 1024 <= share < now or (least is not None and share < least.enough_mib):
            return
        if arg(spec, "gpu-memory-utilization") is not None:
            field, value = "args.gpu-memory-utilization", f"{share * 100 // total / 100:g}"
        else:
            field, value = "gpu_memory", f"{share // UNITS_MIB / 10:g}GiB"
        yield _Candidate(
            cost, now - share, Remedy(engine.name, field, value, f"{now - share:,} MiB less on each GPU")
        )

    def _room(self, engine: DesiredEngine) -> int | None:
        """MiB that each of so many GPUs as one replica needs has free in the end, its old launch gone."""
        rooms = sorted(
            (self._free[key] + self._own(engine, account) for key, account in self._accounts(engine)),
            reverse=True,
        )
        count = engine.launch.gpu_count
        return rooms[count - 1] if count <= len(rooms) else None

    def _accounts(self, engine: DesiredEngine) -> Iterator[tuple[tuple[str, str], Account]]:
        pinned = {name for n in range(engine.replicas) for name in wanted_gpus(engine, n) or ()}
        for key, account in self._ledger.accounts.items():
            if not pinned or account.gpu.index in pinned or account.gpu.uuid in pinned:
                yield key, account

    def _own(self, engine: DesiredEngine, account: Account) -> int:
        own = [one for one in self._launches if one.replica.engine == engine.name]
        return max((account.held.get(one.mark.launch, 0) for one in own), default=0)

    def _held(self, other: DesiredEngine) -> dict[tuple[str, str], int]:
        """What an engine takes of each GPU once the plan is done."""
        held: dict[tuple[str, str], int] = {}
        steps = [step for step in self._plan.steps if step.replica.engine == other.name]
        moved = {step.replica for step in steps if step.placement}
        places = [
            (one.mark.placement, one.mark.launch)
            for one in self._launches
            if one.replica.engine == other.name and one.replica not in moved
        ]
        for place, launch in places:
            for uuid in place.gpus:
                if (account := self._ledger.account(place.node, uuid)) is not None:
                    held[place.node, uuid] = held.get((place.node, uuid), 0) + account.held.get(launch, 0)
        for step in steps:
            if step.placement:
                for uuid in step.placement.gpus:
                    key = step.placement.node, uuid
                    need = self._ledger.need(other.launch, self._ledger.accounts[key].gpu.total_mib) or 0
                    held[key] = held.get(key, 0) + need
        return {key: mib for key, mib in held.items() if mib}

    def _lack(self, engine: DesiredEngine, held: dict[tuple[str, str], int]) -> int:
        """MiB that the GPUs of another engine lack for this one, the least of them."""
        lacks = []
        for key in held:
            account = self._ledger.accounts[key]
            need = self._ledger.need(engine.launch, account.gpu.total_mib) or 0
            lacks.append(need - self._free[key] - self._own(engine, account))
        return max(0, min(lacks, default=0))

    def _asleep(self, launch: ObservedLaunch) -> int:
        place = launch.mark.placement
        found = (self._ledger.account(place.node, uuid) for uuid in place.gpus)
        return sum(asleep_mib(launch, account) for account in found if account is not None)

    def _totals(self, held: dict[tuple[str, str], int]) -> set[int]:
        return {self._ledger.accounts[key].gpu.total_mib for key in held}
