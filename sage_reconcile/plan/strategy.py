"""How a replica is replaced: the new one beside the old one, while that one sleeps, or after it; and why."""

from dataclasses import dataclass

from sage_reconcile.model.desired import DesiredEngine, Strategy
from sage_reconcile.model.observed import Health, ObservedLaunch
from sage_reconcile.plan.place import NoSpot, Placer, Spot, wanted_port


@dataclass(frozen=True, slots=True)
class Choice:
    """The strategy, its place, and why this one."""

    strategy: Strategy
    spot: Spot
    reason: str


def choose(
    engine: DesiredEngine, old: ObservedLaunch, placer: Placer, stays: bool = False
) -> Choice | NoSpot:
    """Surge where old and new fit together, else sleep-swap where the old one can sleep, else recreate.

    A strategy that the file pins is not swapped, but for sleep-swap where the old one cannot sleep. A restart
    stays where it is: what runs does not tell whether the file pins its port.
    """
    replica = old.replica.replica
    why_not = "a restart keeps its port and GPUs" if stays else _why_no_surge(engine, old)
    lacks_memory = False
    if why_not is None:
        beside = placer.find(engine, replica)
        if isinstance(beside, Spot):
            return Choice(Strategy.SURGE, beside, "the new one fits beside the old one")
        why_not, lacks_memory = f"no room beside the old one: {beside.reason}", beside.lacks_memory
    if engine.strategy is Strategy.SURGE and not stays:
        return NoSpot(f"rollout.strategy is surge, but {why_not}", lacks_memory)
    no_swap = None if stays else _why_no_swap(engine, old)
    if no_swap is None and not stays:
        meanwhile = placer.find(engine, replica, evict=old, sleeps=True)
        if isinstance(meanwhile, Spot):
            return Choice(Strategy.SLEEP_SWAP, meanwhile, f"{why_not}; the old one sleeps until it is there")
        no_swap = f"no room while the old one sleeps: {meanwhile.reason}"
    instead = placer.find(engine, replica, evict=old)
    if isinstance(instead, NoSpot):
        return instead
    if engine.strategy is Strategy.SLEEP_SWAP and no_swap:
        why_not = f"sleep-swap is not possible: {no_swap}"
    return Choice(Strategy.RECREATE, instead, why_not)


def _why_no_surge(engine: DesiredEngine, old: ObservedLaunch) -> str | None:
    if engine.strategy in (Strategy.RECREATE, Strategy.SLEEP_SWAP):
        return f"rollout.strategy is {engine.strategy}"
    return _why_not_both(engine, old)


def _why_no_swap(engine: DesiredEngine, old: ObservedLaunch) -> str | None:
    if engine.strategy is Strategy.RECREATE:
        return "rollout.strategy is recreate"
    if not old.mark.spec.can_sleep:
        return "the old one was not started with --enable-sleep-mode"
    return "the old one cannot be seen" if old.health is Health.UNKNOWN else _why_not_both(engine, old)


def _why_not_both(engine: DesiredEngine, old: ObservedLaunch) -> str | None:
    """Why the two cannot be there at the same time, memory apart."""
    if old.health not in (Health.READY, Health.UNKNOWN):
        return "the old one does not serve"
    port = wanted_port(engine, old.replica.replica)
    if port is not None and port == old.mark.placement.port:
        return f"port {port} is fixed by the file, so the old one leaves it first"
    return None
