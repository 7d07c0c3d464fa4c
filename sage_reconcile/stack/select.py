"""Small decisions that both checking and resolving need. Pure."""

from collections.abc import Mapping

from sage_reconcile.model.desired import Program
from sage_reconcile.stack.schema import BUILTIN_RUNTIMES, Engine, Runtime

_DEFAULT_RUNTIME = {"llm": "vllm", "embedding": "sentence-transformers"}


def pick_runtime(engine: Engine, runtimes: Mapping[str, Runtime]) -> Runtime | None:
    """The runtime that the engine names, or the default of its kind; None where the name is unknown."""
    name = engine.runtime or _DEFAULT_RUNTIME[engine.kind]
    if name in runtimes:
        return runtimes[name]
    if name in BUILTIN_RUNTIMES:
        return Runtime.model_validate({"kind": name})
    return None


def program_of(runtime: Runtime) -> Program | None:
    """The version that the runtime pins, None where it pins none."""
    if runtime.version is None:
        return None
    return Program(runtime.version, runtime.python or "", tuple(runtime.packages), runtime.index or "")


def client_names(engine: Engine) -> tuple[str, ...]:
    """Every name that clients may send as `model` for this engine, sorted; of a path also its last part."""
    names = {engine.name, engine.model, *engine.aliases}
    if engine.label:
        names.add(engine.label)
    if engine.model.startswith("/"):
        names.add(engine.model.rstrip("/").rpartition("/")[2] or engine.model)
    return tuple(sorted(names))


def wants_cpu(engine: Engine) -> bool:
    """Whether the engine runs on the CPU: said so, or an embedding engine that says nothing of GPUs."""
    if engine.gpus == 0 or engine.use_gpu is False:
        return True
    return engine.kind == "embedding" and engine.use_gpu is None and engine.gpus == "auto"
