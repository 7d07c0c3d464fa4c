"""The process table of one of two nodes cannot be read."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from tests.build import gap, launch_of, node


def observed(desired: DesiredState) -> ObservedState:
    from dataclasses import replace

    from tests.build import observed as state

    other = desired.engines[1]
    changed = replace(other, launch=replace(other.launch, model="Qwen/Qwen1.5-0.5B-Chat"))
    return state(launch_of(changed), nodes=[node("n1", 1), node("n2", 1)], gaps=(gap(on="n2"),))
