"""The control plane as classes: what runs, what there is room for, starting and stopping.

They keep nothing of their own. Every answer is a look at the host, every change an edit of
`$SAGE_HOME/stacks/adhoc.yaml` that the reconciler carries out, so whatever else looks or edits (the `sage`
command, the management API, an editor) sees the same.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sage_reconcile.control.engines import EngineLifecycleManager
    from sage_reconcile.control.gpus import GPUResourceManager
    from sage_reconcile.control.manager import ControlPlaneManager

__all__ = ["ControlPlaneManager", "EngineLifecycleManager", "GPUResourceManager"]


_MODULES = {
    "ControlPlaneManager": "manager",
    "EngineLifecycleManager": "engines",
    "GPUResourceManager": "gpus",
}


def __getattr__(name: str) -> object:
    """Each class, imported when it is asked for: commands import this package for less."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
