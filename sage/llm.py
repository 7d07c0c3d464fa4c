"""`from sage.llm import UnifiedInferenceClient`. `sage` is a namespace: other distributions may add to it."""

from sage_reconcile.client import InferenceResult, UnifiedInferenceClient

__all__ = ["InferenceResult", "UnifiedInferenceClient"]
