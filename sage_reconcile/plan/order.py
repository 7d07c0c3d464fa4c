"""Order: dependencies first, and by name, so that the same input always gives the same plan."""

from collections.abc import Collection, Mapping
from graphlib import TopologicalSorter

from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState


def depths(desired: DesiredState) -> Mapping[str, int]:
    """How many engines must be up before each: 0 for none. The schema admits no cycle."""
    before = {engine.name: engine.after for engine in desired.engines}
    found: dict[str, int] = {}
    for name in TopologicalSorter(before).static_order():
        found[name] = 1 + max((found[other] for other in before.get(name, ())), default=-1)
    return found


def planning_order(
    desired: DesiredState, sizes: Mapping[str, int], leaving: Collection[str] = ()
) -> list[DesiredEngine]:
    """What is to be stopped, or is `leaving`, first, since it frees memory; then dependencies before
    dependents; among equals what is to sleep first, then pinned GPUs, then the largest need, then the name.

    Steps only ever wait for steps planned before them, so they cannot wait in a circle.
    """
    depth = depths(desired)

    def rank(engine: DesiredEngine) -> tuple[bool, int, bool, bool, int, str]:
        is_stopped = engine.state is EngineState.STOPPED or engine.name in leaving
        return (
            not is_stopped,
            depth[engine.name],
            engine.state is not EngineState.ASLEEP,
            not engine.placement.gpus,
            -sizes.get(engine.name, 0),
            engine.name,
        )

    return sorted(desired.engines, key=rank)
