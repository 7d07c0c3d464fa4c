"""sage: keeps the LLM engines of a host in the state that a stack file describes."""

from typing import TYPE_CHECKING

from sage_reconcile.version import __version__

if TYPE_CHECKING:
    from sage_reconcile.client import UnifiedInferenceClient

__all__ = ["UnifiedInferenceClient", "__version__"]


def __getattr__(name: str) -> object:
    """The client, imported when it is asked for: the supervisor imports this package and must stay small."""
    if name != "UnifiedInferenceClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sage_reconcile.client import UnifiedInferenceClient

    return UnifiedInferenceClient
