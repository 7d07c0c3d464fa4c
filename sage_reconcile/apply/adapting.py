"""LoRA adapters within a step: one that cannot be loaded keeps nothing else from serving."""

from sage_reconcile.apply.hands import Hands
from sage_reconcile.apply.run import Run
from sage_reconcile.errors import ReconcileError
from sage_reconcile.model.actions import AwaitReady, LoadLora, UnloadLora, Verdict

SETTLE_S = 5.0
"""Seconds that the gateway's workers get to take a new table before what it no longer names is unloaded."""


async def load_adapter(hands: Hands, run: Run, action: LoadLora) -> None:
    """Raises ReconcileError in a replacement only: what cannot do what the file asks replaces nothing."""
    launch = action.launch or run.started
    is_awaited = any(isinstance(other, AwaitReady) for other in run.step.actions)
    if launch is None or (is_awaited and not run.is_ready):
        return  # nobody waited for it (--no-wait): the next plan sees what it lacks
    try:
        await hands.load_adapter(launch, action.adapter)
    except ReconcileError as error:
        if run.step.verdict is Verdict.REPLACE:
            run.is_ready = False
            raise
        run.complaints.append(str(error))


async def unload_adapter(hands: Hands, run: Run, action: UnloadLora) -> None:
    """The table without it is published already; until the workers have taken that, requests still come."""
    await hands.drain(action.launch, SETTLE_S)
    try:
        await hands.unload_adapter(action.launch, action.adapter)
    except ReconcileError as error:
        run.complaints.append(str(error))
