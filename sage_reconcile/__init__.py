"""sage: keeps the LLM engines of a host in the state that a stack file describes."""

from importlib import import_module
from typing import TYPE_CHECKING

from sage_reconcile.version import __version__

if TYPE_CHECKING:
    from sage_reconcile.client import UnifiedInferenceClient
    from sage_reconcile.control import ControlPlaneManager, EngineLifecycleManager, GPUResourceManager

__all__ = [
    "ControlPlaneManager",
    "EngineLifecycleManager",
    "GPUResourceManager",
    "UnifiedInferenceClient",
    "__version__",
]

_HOMES = {
    "ControlPlaneManager": "sage_reconcile.control",
    "EngineLifecycleManager": "sage_reconcile.control",
    "GPUResourceManager": "sage_reconcile.control",
    "UnifiedInferenceClient": "sage_reconcile.client",
}


def __getattr__(name: str) -> object:
    """Imported when it is asked for: the supervisor imports this package and must stay small."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
