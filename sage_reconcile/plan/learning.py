"""What a look teaches about launches that are ready or asleep: facts, pure."""

from collections.abc import Iterable
from dataclasses import replace

from sage_reconcile.model.facts import Fact
from sage_reconcile.model.observed import Health, Mark, ObservedGpu, ObservedLaunch, ObservedState


def learned(observed: ObservedState) -> tuple[Fact, ...]:
    """The facts that this look adds to, or corrects in, those that it came with."""
    known = {fact.key: fact for fact in observed.facts}
    changed: dict[tuple[str, str, int], Fact] = {}
    for launch in sorted(observed.launches, key=lambda one: (one.supervisor_started, one.mark.launch)):
        if launch.health not in (Health.READY, Health.ASLEEP):
            continue
        empty = blank(launch.mark, observed.gpus, observed.at)
        if empty is None:
            continue
        before = known.get(empty.key)
        after = _with(before, launch, empty)
        if after is not None and after != before:
            known[after.key] = changed[after.key] = after
    return tuple(changed[key] for key in sorted(changed))


def blank(mark: Mark, gpus: Iterable[ObservedGpu], at: float) -> Fact | None:
    """A fact about this launch that says nothing yet; None where its GPUs cannot be seen."""
    place = mark.placement
    own = [gpu for gpu in gpus if gpu.node == place.node and gpu.uuid in place.gpus]
    if len(own) < len(place.gpus):
        return None
    smallest = min(own, key=lambda gpu: (gpu.total_mib, gpu.name), default=None)
    return Fact(
        fingerprint=mark.fingerprint,
        gpu=smallest.name if smallest else "",
        gpu_total_mib=smallest.total_mib if smallest else 0,
        engine=f"{mark.replica.stack}/{mark.replica.engine}",
        model=mark.spec.model,
        runtime=mark.spec.runtime,
        at=at,
    )


def _with(before: Fact | None, launch: ObservedLaunch, empty: Fact) -> Fact | None:
    """`before` with what this look shows of the launch; None where it shows nothing.

    Memory is the most that was ever seen: an engine that has not worked yet holds less than it will. Programs
    of other versions begin anew.
    """
    is_asleep = launch.health is Health.ASLEEP
    fact = before if before is not None and _is_same_program(before, launch) else empty
    fact = replace(fact, versions=launch.versions or fact.versions)
    seen = max((mib for uuid, mib in launch.gpu_mib if uuid in launch.mark.placement.gpus), default=None)
    if is_asleep:
        fact = replace(fact, asleep_mib=_most(fact.asleep_mib, seen))
    else:
        fact = replace(fact, held_mib=_most(fact.held_mib, seen))
    if launch.ready_at is not None and launch.engine_started is not None and not is_asleep:
        fact = replace(fact, start_seconds=round(max(0.0, launch.ready_at - launch.engine_started), 2))
    if fact == before or (fact.held_mib, fact.asleep_mib, fact.start_seconds) == (None, None, None):
        return None
    return replace(fact, engine=empty.engine, launch=launch.mark.launch, at=empty.at)


def _is_same_program(fact: Fact, launch: ObservedLaunch) -> bool:
    return not fact.versions or not launch.versions or fact.versions == launch.versions


def _most(known: int | None, seen: int | None) -> int | None:
    return known if seen is None else max(seen, known or 0)
