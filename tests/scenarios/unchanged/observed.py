"""Everything runs as the file asks."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from tests.build import launch_of


def observed(desired: DesiredState) -> ObservedState:
    from tests.build import observed as state

    engine = desired.engines[0]
    return state(launch_of(engine, 0), launch_of(engine, 1, id="l2", port=8902))
