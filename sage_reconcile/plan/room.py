"""Who makes room for an engine that is asked for: the least recently used ones, as few as it takes.

Tried by planning: an engine has a place when a plan without those in its way is not blocked. So memory, ports
and GPUs are counted in one way only.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from sage_reconcile.model.actions import Plan
from sage_reconcile.model.desired import DesiredState, EngineState
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.plan.classify import duration
from sage_reconcile.plan.demand import PRELOAD, Seat, Wish, Wishes, needed_by, seats_of, wishes_of
from sage_reconcile.plan.order import depths
from sage_reconcile.plan.policy import Policy

Move = tuple[str, Wish]
Planned = Callable[[Wishes], Plan]


def plan_on_demand(desired: DesiredState, observed: ObservedState, policy: Policy, planned: Planned) -> Plan:
    """The plan with every engine on demand as it is to be. `planned` makes the plan for given wishes."""
    seats = seats_of(desired, observed)
    if not seats:
        return planned({})
    wishes = wishes_of(desired, observed, seats, policy)
    in_turn = _in_turn(desired, seats, wishes)
    # Nobody has a place yet; whoever gets one keeps it, though others ask after it.
    given = {**wishes, **{seat.name: Wish() for seat in in_turn}}
    placed: frozenset[str] = frozenset()
    for seat in in_turn:
        wish, name = wishes[seat.name], seat.name
        room = _Room(desired, seats, planned, placed | {name})
        if room.has({**given, name: wish}):
            given, placed = {**given, name: wish}, placed | {name}
        elif wish.cause == PRELOAD:
            given[name] = Wish(cause="on demand; no room to preload it")
        else:
            given = _with_room(seat, room, {**given, name: wish})
            placed |= {name} if room.has(given) else frozenset()
    return planned(given)


def _in_turn(desired: DesiredState, seats: Mapping[str, Seat], wishes: Wishes) -> list[Seat]:
    """Those to be loaded: what others depend on first, then by priority, then who has waited longest."""
    depth = depths(desired)
    wanted = [s for s in seats.values() if wishes[s.name].state is EngineState.RUNNING and not s.is_awake]
    return sorted(wanted, key=lambda s: (depth[s.name], -s.spec.priority, s.demand.since, s.name))


class _Room:
    """What is tried for one engine, beside those that have a place."""

    def __init__(
        self, desired: DesiredState, seats: Mapping[str, Seat], planned: Planned, placed: frozenset[str]
    ) -> None:
        self.desired = desired
        self.seats = seats
        self._planned = planned
        self._placed = placed

    def has(self, wishes: Wishes, moves: Iterable[Move] = ()) -> bool:
        plan = self._planned({**wishes, **dict(moves)})
        without = {blocked.replica.engine for blocked in plan.blocked}
        without |= {kept.replica.engine for kept in plan.kept if kept.lacks_place}
        without |= {name for name in self._placed if wishes[name].hold}
        return not without & self._placed

    def fewest(self, wishes: Wishes, moves: list[Move]) -> list[Move] | None:
        """The first of the moves that make room, less those that do not help; None if none do."""
        count = next((n for n in range(1, len(moves) + 1) if self.has(wishes, moves[:n])), None)
        if count is None:
            return None
        chosen = moves[:count]
        for move in reversed(chosen[:-1]):
            fewer = [one for one in chosen if one is not move]
            if self.has(wishes, fewer):
                chosen = fewer
        return chosen

    def in_the_way(self, wanted: Seat, wishes: Wishes) -> list[Seat]:
        """Those that may be gone some time, least priority first, then least recently used."""
        others = [
            seat
            for seat in self.seats.values()
            if seat.name != wanted.name
            and not seat.spec.pin
            and not needed_by(seat.name, self.desired, self.seats, wishes)
        ]
        return sorted(others, key=lambda s: (s.spec.priority, s.last_used, s.name))


def _with_room(wanted: Seat, room: _Room, wishes: dict[str, Wish]) -> dict[str, Wish]:
    """The wishes with room made for one engine, or with what it waits for; as they are if nothing helps."""
    others = room.in_the_way(wanted, wishes)
    may_go = [s for s in others if wishes[s.name].state is None and s.spec.priority <= wanted.spec.priority]
    moves = _moves(f"makes room for {wanted.name}", may_go)
    chosen = room.fewest(wishes, moves)
    if chosen is not None:
        return {**wishes, **dict(chosen)}
    gone = Wish(EngineState.STOPPED)
    waits_for = room.fewest(wishes, [(seat.name, gone) for seat in others])
    if waits_for is None:
        return wishes
    held_up = [_why_it_stays(room.seats[name], wishes[name], wanted) for name, _ in waits_for]
    hold = f"{wishes[wanted.name].cause}; waits for room: " + ", ".join(held_up)
    return {**wishes, wanted.name: replace(wishes[wanted.name], hold=hold)}


def _moves(cause: str, others: list[Seat]) -> list[Move]:
    """What may be done now, the least harm first: those without requests are put aside, then what sleeps is
    ended, then they are ended, too; then those with requests, which are drained before."""
    aside, ended = Wish(EngineState.ASLEEP, cause), Wish(EngineState.STOPPED, cause)
    awake = [s for s in others if s.is_awake and not s.is_loading and s.at >= s.settles_at]
    asleep = [s for s in others if s.launches and not s.is_awake and not s.is_asked]
    moves = []
    for seats in ([s for s in awake if not s.is_busy], [s for s in awake if s.is_busy]):
        moves += [(seat.name, aside) for seat in seats]
        moves += [(seat.name, ended) for seat in asleep]
        moves += [(seat.name, ended) for seat in seats if seat.engine.launch.can_sleep]
        asleep = []
    return moves


def _why_it_stays(seat: Seat, wish: Wish, wanted: Seat) -> str:
    """Why an engine that is in the way does not make room now."""
    if seat.spec.priority > wanted.spec.priority:
        return f"{seat.name} has a higher priority"
    if seat.is_loading:
        return f"{seat.name} is loading"
    if seat.is_awake and seat.at < seat.settles_at:
        since = duration(seat.at - seat.loaded_at)
        return f"{seat.name} was loaded {since} ago and stays for {seat.spec.min_residency:g} s"
    if wish.state is EngineState.RUNNING:
        return f"{seat.name} was {wish.cause}" if seat.is_asked else f"{seat.name} is {wish.cause}"
    return f"{seat.name} makes room for another one"
