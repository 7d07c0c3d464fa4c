"""An empty host with two 80 GB GPUs."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from tests.build import node


def observed(desired: DesiredState) -> ObservedState:
    from tests.build import observed as state

    return state(nodes=[node("host", 2)])
