"""sage: keeps the LLM engines of a host in the state that a stack file describes."""

from sage_reconcile.version import __version__

__all__ = ["__version__"]
