"""The Python client: chat, generate and embed on whatever sage serves, wherever that is."""

from sage_reconcile.client.errors import (
    AccessDeniedError,
    EngineError,
    NoBackendError,
    RequestRejectedError,
    UnknownModelError,
)
from sage_reconcile.client.requests import InferenceResult
from sage_reconcile.client.streams import AsyncTextStream, TextStream
from sage_reconcile.client.unified import UnifiedInferenceClient

__all__ = [
    "AccessDeniedError",
    "AsyncTextStream",
    "EngineError",
    "InferenceResult",
    "NoBackendError",
    "RequestRejectedError",
    "TextStream",
    "UnifiedInferenceClient",
    "UnknownModelError",
]
