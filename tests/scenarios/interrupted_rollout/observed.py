"""Somebody pressed Ctrl-C while the new launch was loading beside the old one."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import Health, ObservedState
from tests.build import NOW, launch_of, mark, running


def observed(desired: DesiredState) -> ObservedState:
    from dataclasses import replace

    from tests.build import observed as state

    engine = desired.engines[0]
    old = running(mark("chat", replace(engine.launch, model="Qwen/Qwen2.5-0.5B-Instruct"), id="old"))
    new = replace(launch_of(engine, id="new", port=8902), health=Health.STARTING, since=NOW - 90)
    return state(old, new)
