"""The engine runs with another setting, in sleep mode; the two do not fit on the GPU together."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from tests.build import launch_of


def observed(desired: DesiredState) -> ObservedState:
    from dataclasses import replace

    from tests.build import observed as state

    engine = desired.engines[0]
    old = replace(
        engine, launch=replace(engine.launch, args=(("enable-sleep-mode", True), ("max-model-len", 4096)))
    )
    return state(launch_of(old))
