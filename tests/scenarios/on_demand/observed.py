"""chat is awake and was used a minute ago, code sleeps; a request for code is held."""

from dataclasses import replace

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import Demand, Health, ObservedState
from tests.build import NOW, launch_of
from tests.build import observed as state


def observed(desired: DesiredState) -> ObservedState:
    chat, code = desired.engines
    sleeps = launch_of(code, health=Health.ASLEEP, id="l2", port=8902)
    sleeps = replace(sleeps, gpu_mib=((sleeps.mark.placement.gpus[0], 1300),))
    asked = (Demand("demo", "chat", last=NOW - 60), Demand("demo", "code", 1, NOW - 0.25, 0, NOW - 0.25))
    return replace(state(launch_of(chat), sleeps), demand=asked)
