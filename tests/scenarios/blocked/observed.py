"""Somebody else uses the GPU and the port."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState, PortHolder
from tests.build import GIB, gpu, node


def observed(desired: DesiredState) -> ObservedState:
    from tests.build import observed as state

    gpus = [gpu(0, used=50 * GIB), gpu(1, used=72 * GIB)]
    return state(nodes=[node("n1", gpus, [PortHolder(8090, 4121, "text-embeddings")])])
