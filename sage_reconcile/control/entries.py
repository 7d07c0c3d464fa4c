"""Entries of adhoc.yaml as imperative commands, the API and the classes make them: one record, one rule."""

from collections.abc import Mapping
from typing import Any, TypedDict

from sage_reconcile import adhoc
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.observed import ObservedState


class EngineOptions(TypedDict, total=False):
    """How an engine is served, in the words of the first system; the rest stays as the entry says."""

    engine_kind: str
    tensor_parallel_size: int
    pipeline_parallel_size: int
    port: int
    engine_label: str
    max_concurrent_requests: int
    required_memory_gb: float
    use_gpu: bool
    runtime: str
    metadata: Mapping[str, str]
    args: Mapping[str, Any]
    extra_args: list[str]
    health: Mapping[str, Any]
    restart: Mapping[str, Any]


class EntryOptions(EngineOptions, total=False):
    """The same, and where an external engine answers."""

    url: str


FIELDS = {
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
    "engine_label": "label",
    "max_concurrent_requests": "max_concurrent",
}
"""What goes by another name in a stack file."""

KNOWN = EngineOptions.__annotations__ | EntryOptions.__annotations__


def fields_of(model: str, options: EntryOptions | EngineOptions) -> dict[str, Any]:
    """The fields of a stack file that the options are. Raises PermanentError for an option that is none."""
    if unknown := sorted(options.keys() - KNOWN.keys()):
        known = ", ".join(KNOWN)
        raise PermanentError(f"there is no option {unknown[0]}; there are: {known}")
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    kind = given.pop("engine_kind", "llm")
    gib = given.pop("required_memory_gb", None)
    fields: dict[str, Any] = {} if kind == "llm" else {"kind": kind}
    fields["model"] = model
    fields |= {FIELDS.get(key, key): _plain(value) for key, value in given.items()}
    return fields if gib is None else {**fields, "gpu_memory": f"{gib:g}GiB"}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def entry(home: Home, name: str, fields: Mapping[str, Any], observed: ObservedState) -> dict[str, Any]:
    """What is laid over the engine's entry; a stopped one runs again.

    Raises PermanentError where the name belongs to another model.
    """
    known = adhoc.entries(home).get(name)
    if known is None:
        is_ours = fields.get("runtime") != "external"
        is_llm = fields.get("kind", "llm") == "llm"
        return as_cpu(fields, observed) if is_llm and is_ours else dict(fields)
    if known.get("model") != fields.get("model", known.get("model")):
        raise PermanentError(
            f"the engine {name} of {home.adhoc_file} serves {known.get('model')}: choose another name, "
            f"or take it out with `sage llm engine remove {name}`"
        )
    return {**fields, "state": "running"} if "state" in known else dict(fields)


def as_cpu(fields: Mapping[str, Any], observed: ObservedState) -> dict[str, Any]:
    """The fields of an LLM where there is no GPU: of the CPU, by transformers if nothing else is said."""
    is_blind = any(gap.what in ("gpus", "node") for gap in observed.gaps)
    if observed.gpus or is_blind or fields.get("use_gpu") is True or fields.get("gpus"):
        return dict(fields)
    own = {**fields, "use_gpu": False}
    if "runtime" not in own:
        # In bfloat16 some CPUs answer with nonsense; in float32 none does.
        own |= {"runtime": "transformers", "args": {"dtype": "float32", **own.get("args", {})}}
    return own
