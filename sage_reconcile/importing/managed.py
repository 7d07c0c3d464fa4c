"""The same engine as sage would start it: fields of a stack file, from a command line. Pure."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sage_reconcile.importing.flags import is_secret, redacted
from sage_reconcile.importing.processes import Candidate
from sage_reconcile.importing.recognise import Recognised
from sage_reconcile.model.desired import ArgValue

# What of a process's environment makes an engine what it is; the rest is its shell's.
LISTED: tuple[str, ...] = ("VLLM_", "SGLANG_", "LLAMA_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_")
LISTED += ("NCCL_", "TORCH_", "PYTORCH_", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
LISTED += ("CUDA_DEVICE_ORDER", "LD_LIBRARY_PATH")
# Flags that are fields of the stack file, or that sage sets by itself.
FIELDS = frozenset({"host", "port", "model", "served-model-name", "uds", "root-path", "api-key"})
VLLM_FIELDS = frozenset({"tensor-parallel-size", "pipeline-parallel-size", "gpu-memory-utilization"})


@dataclass(frozen=True, slots=True)
class Gpus:
    """What NVML says that the engine holds: (index, MiB) of each GPU; `is_known` where it could be asked."""

    held: tuple[tuple[int, int], ...] = ()
    is_known: bool = True


@dataclass(slots=True)
class Managed:
    """Fields in the order in which they are written, and what could not be carried over."""

    fields: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    python: str = ""


def managed(one: Candidate, known: Recognised, base: Mapping[str, Any], gpus: Gpus) -> Managed:
    """`base` are the fields that do not depend on who starts it: name, kind, names."""
    model = _model(one, known)
    result = Managed({**base, "model": model})
    if known.runtime:
        result.fields["runtime"] = known.runtime
        result.python = _python(one, known.python)
    else:
        result.fields["runtime"] = "command"
        result.fields["command"] = _command(one, known, result)
        result.fields["cwd"] = one.cwd
    result.fields["port"] = one.port
    _place(one, known, gpus, result)
    args = {name: value for name, value in known.flags.long.items() if _is_arg(name, value, known, result)}
    if args:
        result.fields["args"] = args
    if known.runtime and known.flags.rest:
        words = [word for word in known.flags.rest if not is_secret("", word)]
        result.fields["extra_args"] = words
    env = environment(one.environ, result.notes)
    if env:
        result.fields["env"] = env
    return result


def managed_command(one: Candidate, base: Mapping[str, Any], model: str, gpus: Gpus) -> Managed | None:
    """A program that is not known, by its own command line; None where its port does not stand in it."""
    port = str(one.port)
    result = Managed({**base, "model": model, "runtime": "command"})
    words = []
    for word in one.argv:
        name, equals, value = word.partition("=")
        word = "{port}" if word == port else f"{name}={{port}}" if equals and value == port else word
        words.append(word)
    if not any("{port}" in word for word in words) or redacted(one.argv) != one.argv:
        return None
    words[0] = _python(one, words[0]) or words[0]
    result.fields |= {"command": words, "cwd": one.cwd, "port": one.port}
    if gpus.held:
        _on_gpu(gpus, result)
    else:
        result.fields["use_gpu"] = False
    if env := environment(one.environ, result.notes):
        result.fields["env"] = env
    return result


def _on_gpu(gpus: Gpus, result: Managed) -> None:
    """GPUs of a program that has no flag for their memory: as much as it holds now."""
    result.fields["use_gpu"] = True
    if gpus.held:
        result.fields["gpu_memory"] = f"{max(mib for _, mib in gpus.held)}MiB"


def environment(environ: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """The listed variables; a secret becomes a reference to the variable of the same name."""
    found = {}
    for name in sorted(environ):
        if not name.startswith(LISTED) or name == "VLLM_API_KEY":
            continue
        if is_secret(name, environ[name]):
            found[name] = f"${{env:{name}}}"
            notes.append(f"{name} must be set where sage runs: its value is not written here")
        else:
            found[name] = environ[name].replace("${", "$${")
    return found


def _is_arg(name: str, value: ArgValue, known: Recognised, result: Managed) -> bool:
    """Whether the flag goes into `args`."""
    if name in FIELDS or (known.runtime == "vllm" and name in VLLM_FIELDS):
        # On the CPU it is the share of the host's memory, which no field of the file says.
        return name == "gpu-memory-utilization" and result.fields.get("use_gpu") is False
    if not known.runtime and name == "model-path":
        return False
    if is_secret(name, value):
        result.notes.append(f"--{name} is a secret and was left out: pass it through env")
        return False
    return True


def _place(one: Candidate, known: Recognised, gpus: Gpus, result: Managed) -> None:
    """GPUs: what NVML measured, else what CUDA_VISIBLE_DEVICES says, else none."""
    fields, flag = result.fields, known.flag
    if known.runtime == "vllm" or known.program == "SGLang":
        tensor = flag("tensor-parallel-size", "tp-size", "tp") or 1
        pipeline = flag("pipeline-parallel-size", "pp-size", "pp") or 1
        fields |= {"tensor_parallel": tensor} if tensor != 1 else {}
        fields |= {"pipeline_parallel": pipeline} if pipeline != 1 else {}
    visible = [part for part in one.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    wanted = int(fields.get("tensor_parallel", 1)) * int(fields.get("pipeline_parallel", 1))
    if gpus.held:
        numbers: list[int | str] = [index for index, _ in gpus.held]
    else:
        numbers = [int(part) if part.strip().isdecimal() else part.strip() for part in visible]
        if gpus.is_known or not numbers:
            fields["use_gpu"] = False
            return
    if len(numbers) == wanted:
        fields["gpus"] = numbers
    if known.runtime != "vllm":
        _on_gpu(gpus, result)
    elif share := flag("gpu-memory-utilization"):
        fields["gpu_memory"] = share


def _model(one: Candidate, known: Recognised) -> str:
    """A folder is named from the root on: sage starts engines elsewhere."""
    path = os.path.join(one.cwd, known.model)
    is_folder = known.model.startswith((".", "/")) or os.path.isdir(path)
    if known.model and known.runtime and is_folder:
        return os.path.normpath(path)
    return known.model


def _python(one: Candidate, python: str) -> str:
    """The interpreter as the process was started with it: what lies behind its link has no packages."""
    if os.sep in python:
        return os.path.normpath(os.path.join(one.cwd, python))
    for folder in one.environ.get("PATH", "").split(os.pathsep):
        path = os.path.join(folder, python)
        if python and os.access(path, os.X_OK):
            return path
    return ""


def _command(one: Candidate, known: Recognised, result: Managed) -> list[str]:
    """The words before the long flags, with placeholders; long flags go into `args`."""
    words = [*known.head]
    words[0] = _python(one, words[0]) or words[0]
    rest = list(known.flags.rest)
    for at, word in enumerate(rest):
        if is_secret("", word):
            rest[at] = ""
            result.notes.append("a word of the command line is a secret and was left out")
    if (path := known.flag("model-path")) is not None:
        words += ["--model-path", str(path)]
    elif (path := known.flag("model")) is not None:
        words += ["--model", str(path)]
    return [*words, *filter(None, rest), "--host", "{host}", "--port", "{port}"]
