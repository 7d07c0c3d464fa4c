"""`from sage.llm import UnifiedInferenceClient`. `sage` is a namespace: other distributions may add to it."""

from sage_reconcile.client import InferenceResult, UnifiedInferenceClient
from sage_reconcile.control import ControlPlaneManager, EngineLifecycleManager, GPUResourceManager

__all__ = [
    "ControlPlaneManager",
    "EngineLifecycleManager",
    "GPUResourceManager",
    "InferenceResult",
    "UnifiedInferenceClient",
]
