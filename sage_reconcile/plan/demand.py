"""Engines on demand: who is asked for, who is idle, and what each of them is to be because of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState, OnDemandSpec
from sage_reconcile.model.observed import Demand, Health, ObservedLaunch, ObservedState
from sage_reconcile.plan.classify import duration
from sage_reconcile.plan.memory import Ledger
from sage_reconcile.plan.policy import Policy

PRELOAD = "preload"

_LOADING = (Health.STARTING, Health.BACKOFF)
_GONE = (Health.ASLEEP, Health.EXITED)


@dataclass(frozen=True, slots=True)
class Wish:
    """What one engine on demand is to be, and why. `state` None: as it is; ASLEEP: put aside, be it stopped.

    `hold`: it is asked for and there is no place for it now, and why.
    """

    state: EngineState | None = None
    cause: str = "on demand"
    hold: str = ""

    @property
    def is_aside(self) -> bool:
        return self.state in (EngineState.ASLEEP, EngineState.STOPPED)


Wishes = Mapping[str, Wish]


@dataclass(frozen=True, slots=True)
class Seat:
    """One engine on demand as it is now; times in epoch seconds."""

    engine: DesiredEngine
    spec: OnDemandSpec
    launches: tuple[ObservedLaunch, ...]
    demand: Demand
    at: float

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def is_asked(self) -> bool:
        return self.demand.waiting > 0

    @property
    def is_awake(self) -> bool:
        return any(launch.health not in _GONE for launch in self.launches)

    @property
    def is_loading(self) -> bool:
        return any(launch.health in _LOADING for launch in self.launches)

    @property
    def came_back(self) -> bool:
        """Whether its supervisor started it again after it ended by itself, and nobody has used it since."""
        return not self.spec.pin and any(
            launch.restarts > 0 and (launch.health in _LOADING or self._is_unused(launch))
            for launch in self.launches
        )

    def _is_unused(self, launch: ObservedLaunch) -> bool:
        """Whether nobody asked since the process answered for the first time, nor woke it. A restart comes at
        once, so that the next look may find it ready."""
        began = launch.ready_at or 0.0
        return launch.health not in _GONE and began > max(self.demand.last, launch.woken_at)

    @property
    def is_busy(self) -> bool:
        return self.demand.in_flight > 0 or self.is_asked

    @property
    def loaded_at(self) -> float:
        awake = (one for one in self.launches if one.health not in _GONE)
        return max((max(one.ready_at or one.since, one.woken_at) for one in awake), default=0.0)

    @property
    def last_used(self) -> float:
        return max(self.demand.last, self.loaded_at)

    @property
    def settles_at(self) -> float:
        """Until when it stays though others wait for its place."""
        return self.loaded_at + self.spec.min_residency

    @property
    def idles_at(self) -> float:
        """From when on it has been idle for too long."""
        return self.last_used + self.spec.idle_ttl


def seats_of(desired: DesiredState, observed: ObservedState) -> dict[str, Seat]:
    """The engines on demand by name. One whose state is stopped is not to be had on demand either."""
    told = {d.engine: d for d in observed.demand or () if d.stack == desired.stack}
    return {
        engine.name: Seat(
            engine=engine,
            spec=engine.on_demand,
            launches=tuple(
                one
                for one in observed.launches
                if (one.replica.stack, one.replica.engine) == (desired.stack, engine.name)
            ),
            demand=told.get(engine.name, Demand(desired.stack, engine.name)),
            at=observed.at,
        )
        for engine in desired.engines
        if engine.on_demand is not None and engine.state is EngineState.RUNNING
    }


def wishes_of(
    desired: DesiredState, observed: ObservedState, seats: Mapping[str, Seat], policy: Policy
) -> dict[str, Wish]:
    """What requests, time and other engines make of each. Without a gateway that tells of requests nobody is
    idle: not seen is not absent."""
    wishes = {name: Wish() for name in seats}
    for name, seat in seats.items():
        if seat.is_asked:
            wishes[name] = Wish(EngineState.RUNNING, f"asked for {_ago(seat.at - seat.demand.since)} ago")
        elif seat.spec.preload and policy.preload and not seat.launches:
            wishes[name] = Wish(EngineState.RUNNING, PRELOAD)
    _add_needed(desired, seats, wishes)
    for name, seat in seats.items():
        if observed.demand is not None and seat.came_back:
            # One that slept comes back awake.
            if wishes[name].state is None:
                wishes[name] = Wish(EngineState.STOPPED, "it ended, and nobody asks for it")
            elif _is_overdrawn(seat, observed):
                wishes[name] = Wish(EngineState.STOPPED, "it came back into memory that others have by now")
        is_quiet = seat.is_awake and not (seat.is_loading or seat.is_busy or seat.spec.pin)
        is_known = observed.demand is not None and wishes[name].state is None
        if is_known and is_quiet and seat.at >= seat.idles_at and not needed_by(name, desired, seats, wishes):
            wishes[name] = Wish(EngineState.ASLEEP, f"idle for {duration(seat.at - seat.last_used)}")
    return wishes


def _is_overdrawn(seat: Seat, observed: ObservedState) -> bool:
    """Whether more is taken, or will be, of its GPUs than there is."""
    places = [(one.mark.placement.node, uuid) for one in seat.launches for uuid in one.mark.placement.gpus]
    accounts = Ledger(observed).accounts
    return any(place in accounts and accounts[place].free < 0 for place in places)


def _add_needed(desired: DesiredState, seats: Mapping[str, Seat], wishes: dict[str, Wish]) -> None:
    """What others depend on is loaded with them."""
    for _ in seats:
        for name in seats:
            by = needed_by(name, desired, seats, wishes)
            if by and wishes[name].state is None:
                wishes[name] = Wish(EngineState.RUNNING, f"needed by {by}")


def needed_by(name: str, desired: DesiredState, seats: Mapping[str, Seat], wishes: Wishes) -> str:
    """The first engine that runs, or is to run, and depends on `name`; "" for none."""
    for engine in sorted(desired.engines, key=lambda one: one.name):
        if name in engine.after and engine.state is EngineState.RUNNING:
            seat, wish = seats.get(engine.name), wishes.get(engine.name, Wish())
            stays = wish.state is EngineState.RUNNING or (wish.state is None and seat and seat.is_awake)
            if seat is None or stays:
                return engine.name
    return ""


def as_wished(engine: DesiredEngine, wish: Wish | None, launch: ObservedLaunch | None) -> DesiredEngine:
    """The engine with the state that its replica is to have; `launch` is the one that it has."""
    if wish is None:
        return engine
    is_same = launch is not None and engine.is_embodied_by(launch.mark.fingerprint, launch.mark.spec)
    can_sleep = launch is not None and launch.mark.spec.can_sleep and is_same
    state = wish.state
    if state is None:
        is_up = launch is not None and launch.health not in _GONE
        state = EngineState.RUNNING if is_up else EngineState.STOPPED
        # One that sleeps and is no longer what the file asks for starts anew when it is asked for.
        if launch is not None and launch.health is Health.ASLEEP and is_same:
            state = EngineState.ASLEEP
    elif state is EngineState.ASLEEP and not can_sleep:
        state = EngineState.STOPPED
    return replace(engine, state=state)


def due_in(desired: DesiredState, observed: ObservedState) -> float | None:
    """Seconds until time alone makes another plan: an engine is idle for too long, or has stayed for as long
    as it must while another one waits for its place. None where nothing is to come."""
    if observed.demand is None:
        return None
    seats = seats_of(desired, observed)
    awake = [seat for seat in seats.values() if seat.is_awake and not seat.spec.pin]
    # Who is busy now may be idle right after this look.
    times = [seat.at + seat.spec.idle_ttl if seat.is_busy else seat.idles_at for seat in awake]
    if any(seat.is_asked and not seat.is_awake for seat in seats.values()):
        times += [seat.settles_at for seat in awake]
    return min((time - observed.at for time in times if time > observed.at), default=None)


def demand_notes(desired: DesiredState, observed: ObservedState) -> tuple[str, ...]:
    """Who is not there and need not be, in one sentence."""
    names = [name for name, seat in seats_of(desired, observed).items() if not seat.launches]
    return (f"on demand, loaded when a request asks for it: {', '.join(names)}",) if names else ()


def _ago(seconds: float) -> str:
    return f"{max(0.0, seconds):.1f} s" if seconds < 10 else duration(seconds)
