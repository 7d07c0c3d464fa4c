"""Options that say how an engine is served, and the fields of a stack file that they are."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, validators

from sage_reconcile.errors import PermanentError

Yes = Annotated[
    bool, Parameter(name=["--yes", "-y"], negative="", help="Do not ask before something that runs ends.")
]
DryRun = Annotated[bool, Parameter(negative="", help="Only show the plan; write nothing.")]
Timeout = Annotated[
    float | None,
    Parameter(validator=validators.Number(gt=0), help="Seconds that each engine gets to answer."),
]
NoWait = Annotated[bool, Parameter(negative="", help="Do not wait until the engine answers.")]
Port = Annotated[
    int | None,
    Parameter(
        validator=validators.Number(gte=1, lte=65535),
        help="Port of the engine; else the lowest free one of 8901-8999.",
    ),
]
EmbeddingPort = Annotated[
    int | None,
    Parameter(
        validator=validators.Number(gte=1, lte=65535),
        help="Port of the embedding engine; else the lowest free one of 8090-8199.",
    ),
]
TensorParallel = Annotated[
    int | None,
    Parameter(
        name=["--tensor-parallel", "-tp"],
        validator=validators.Number(gte=1),
        help="GPUs that share each layer; else 1.",
    ),
]
PipelineParallel = Annotated[
    int | None,
    Parameter(
        name=["--pipeline-parallel", "-pp"],
        validator=validators.Number(gte=1),
        help="GPU groups that share the layers; else 1.",
    ),
]
MaxConcurrent = Annotated[
    int | None,
    Parameter(validator=validators.Number(gte=1), help="Requests that it gets at once at most; else 256."),
]
UseGpu = Annotated[
    bool | None,
    Parameter(
        name="--use-gpu",
        negative="--no-gpu",
        help="On a GPU, or on the CPU; else LLMs on a GPU where there is one, embeddings on the CPU.",
    ),
]
Label = Annotated[str | None, Parameter(help="A name that clients may send as model.")]
Name = Annotated[
    str | None,
    Parameter(help="Name of the engine; else the last part of the model's name, in small letters."),
]
Runtime = Annotated[
    str | None,
    Parameter(
        help="Program that serves; else vllm, or transformers without a GPU, or sentence-transformers."
    ),
]
MaxModelLen = Annotated[
    int | None, Parameter(validator=validators.Number(gte=1), help="Longest context, in tokens (vllm).")
]
Memory = Annotated[str | None, Parameter(help="Memory of each GPU: a size as 20GiB, or a fraction as 0.5.")]
RequiredMemory = Annotated[
    float | None,
    Parameter(validator=validators.Number(gt=0), help="The same in GiB, as a number."),
]
Args = Annotated[
    list[str] | None,
    Parameter(
        name="--arg",
        negative="",
        help="Flag for the engine, repeatable: max-model-len=4096, enforce-eager=true.",
    ),
]
Ids = Annotated[str, Parameter(help="As `sage llm engine list` names it.")]


def args_of(words: Sequence[str] | None, **more: Any) -> dict[str, Any] | None:
    """`--arg KEY=VALUE` as the map `args`, values as YAML reads them; None for none.

    Raises PermanentError for a word that is none of that shape.
    """
    from sage_reconcile.stack.yamltree import parse

    found = {key: value for key, value in more.items() if value is not None}
    for word in words or ():
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise PermanentError(f"--arg {word}: write KEY=VALUE, as in --arg enforce-eager=true")
        root, faults = parse(text)
        if faults:
            raise PermanentError(f"--arg {word}: {faults[0].message}; put the value in quotes")
        found[key.removeprefix("--")] = root.plain() if root is not None else None
    return found or None


def memory_of(size: str | None, gib: float | None = None) -> str | float | None:
    """`gpu_memory` of a stack file; a fraction is a number there."""
    if size is not None and gib is not None:
        raise PermanentError("--gpu-memory and --required-memory-gb say the same: give one of them")
    if gib is not None:
        return f"{gib:g}GiB"
    return float(size) if size is not None and re.fullmatch(r"[0-9.]+", size) else size


def name_of(model: str) -> str:
    """An engine's name from its model's: the last part in small letters, what is not allowed as hyphens."""
    last = model.rstrip("/").rpartition("/")[2].lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:63]
    return name or "engine"


def checked_name(name: str) -> str:
    from sage_reconcile.stack.fields import is_name

    if not is_name(name):
        raise PermanentError(f'"{name}" cannot be the name of an engine: small letters, digits, hyphens')
    return name


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given: those that were not keep what the file says."""
    return {key: value for key, value in fields.items() if value is not None}
