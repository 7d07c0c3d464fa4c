"""Three engines run; one is to sleep, one to stop, one left the file."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from tests.build import launch_of, mark, running, spec


def observed(desired: DesiredState) -> ObservedState:
    from tests.build import observed as state

    day, evening, _ = desired.engines
    gone = running(mark("gone", spec("old/model", need=0.25), id="l3", port=8903))
    return state(launch_of(day), launch_of(evening, id="l2", port=8902), gone)
