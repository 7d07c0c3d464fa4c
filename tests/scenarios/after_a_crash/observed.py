"""The supervisor of one engine was killed, another engine gave up, a third is loading."""

from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import Health, LastExit, ObservedState
from tests.build import GIB, NOW, gpu, launch_of, mark, node, orphan


def observed(desired: DesiredState) -> ObservedState:
    from dataclasses import replace

    from tests.build import observed as state

    chat, coder, embed = desired.engines
    left = orphan(mark("chat", chat.launch, id="dead"), pids=(411, 412, 415), held=58 * GIB)
    gave_up = mark("embed", embed.launch).replica, LastExit(NOW - 300, 1, None, False, "model not found")
    loading = replace(launch_of(coder, id="l2", gpus=(1,), port=8902), health=Health.STARTING, since=NOW - 40)
    return state(
        loading,
        nodes=[node("n1", [gpu(0, used=58 * GIB), gpu(1)])],
        orphans=(left,),
        exits=(gave_up,),
    )
