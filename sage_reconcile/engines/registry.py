"""The runtimes by name. `external` is none of them: it is never started."""

from sage_reconcile.engines.base import Runtime
from sage_reconcile.engines.command import Command
from sage_reconcile.engines.sentence_transformers import SentenceTransformers
from sage_reconcile.engines.transformers import Transformers
from sage_reconcile.engines.vllm import Vllm

RUNTIMES: dict[str, Runtime] = {
    "vllm": Vllm(),
    "transformers": Transformers(),
    "sentence-transformers": SentenceTransformers(),
    "command": Command(),
}


def runtime(name: str) -> Runtime:
    """The runtime of this name. Raises KeyError: the stack schema admits no other names."""
    return RUNTIMES[name]
