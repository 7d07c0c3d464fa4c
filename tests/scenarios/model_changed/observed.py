"""Both replicas run the old model; there is room for old and new on neither GPU."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from tests.build import GIB, gpu, mark, node, running


def observed(desired: DesiredState) -> ObservedState:
    from dataclasses import replace

    from tests.build import observed as state

    engine = desired.engines[0]
    old = replace(engine.launch, model="Qwen/Qwen2.5-7B-Instruct", args=(("max-model-len", 4096),))
    launches = [
        running(
            mark("chat", old, replica=n, id=f"old{n}", port=8901 + n, gpus=(n,)),
            live=engine.live,
            held=58 * GIB,
        )
        for n in range(2)
    ]
    return state(*launches, nodes=[node("n1", [gpu(n, used=58 * GIB) for n in range(2)])])
