"""What mends a failed start, by its cause: one table, causes as supervisor.verdicts names them. Pure.

An edit is made only of numbers and names that the engine itself printed, or that the host has: what would be
a guess is advice. Nothing here lets code run that did not run before, or drops what was asked for.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import replace

from sage_reconcile.engines import memoryfixes
from sage_reconcile.engines.failures import Failure
from sage_reconcile.model.desired import EngineState, ProbeKind, Strategy
from sage_reconcile.model.fixes import Edit, Fix

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as max-lora-rank."""

FLAGS = (
    "attention-backend", "block-size", "chat-template", "compilation-config", "cpu-offload-gb",
    "download-dir", "dtype", "enable-auto-tool-choice", "enable-chunked-prefill", "enable-expert-parallel",
    "enable-lora", "enable-prefix-caching", "enable-sleep-mode", "enforce-eager", "generation-config",
    "gpu-memory-utilization", "hf-overrides", "kv-cache-dtype", "kv-cache-memory-bytes",
    "limit-mm-per-prompt", "load-format",
    "max-cpu-loras", "max-lora-rank", "max-loras", "max-model-len", "max-num-batched-tokens", "max-num-seqs",
    "model-impl", "quantization", "reasoning-parser", "revision", "rope-scaling", "runner", "seed",
    "served-model-name", "speculative-config", "swap-space", "tokenizer", "tokenizer-mode",
    "tool-call-parser", "trust-remote-code",
)  # fmt: skip
"""vLLM's flags that stack files use, to mend typing errors only: no flag is refused for want of it."""


def fix_for(failure: Failure) -> Fix | None:
    """What mends it; None where nothing is known of its cause."""
    for start, rule in RULES:
        if failure.cause.startswith(start):
            return _in_its_words(failure, rule(failure))
    return None


def _in_its_words(failure: Failure, fix: Fix | None) -> Fix | None:
    """Of a program that is not vLLM but speaks like it the flags are not known: then an edit is advice."""
    flags = [edit for edit in fix.edits if edit.path[0] == "args"] if fix else []
    if fix is None or not flags or failure.takes_vllm_flags:
        return fix
    shown = " ".join(f"--{edit.path[-1]} {edit.value}" for edit in flags)
    return failure.advise(f"give it what vLLM calls {shown}", fix.why)


def _hub(model: str) -> str:
    return f"https://huggingface.co/{model}" if "/" in model and not model.startswith("/") else "its hub page"


def _length(failure: Failure) -> Fix:
    longest = failure.number(r"derived max_model_len \((?:[\w.]+=)?([\d.]+)")
    if not longest:
        return failure.advise("lower max-model-len to max_position_embeddings of the model's config.json")
    return failure.edit(f"the model was made for {longest:,} tokens", failure.flag("max-model-len", longest))


def _batched(failure: Failure) -> Fix:
    wanted = failure.number(r"max_model_len \((\d+)\)") or failure.number(r"max_num_seqs \((\d+)\)")
    if not wanted:
        return failure.advise("raise max-num-batched-tokens to max-model-len")
    return failure.edit(
        f"one step must hold {wanted:,} tokens", failure.flag("max-num-batched-tokens", wanted)
    )


def _divides(failure: Failure) -> Fix:
    found = failure.find(r"heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)")
    heads, size = (int(found[1]), int(found[2])) if found else (0, 0)
    fits = next((n for n in range(size - 1, 0, -1) if heads % n == 0), 0)
    if not fits or failure.spec.tensor_parallel != size:
        return failure.advise("choose a tensor_parallel that divides the number of its attention heads")
    return failure.edit(
        f"{heads} attention heads cannot be shared by {size} GPUs", Edit(("tensor_parallel",), fits)
    )


def _dtype(failure: Failure) -> Fix:
    found = failure.find(r"supported dtypes: \[torch\.(\w+)") or failure.find(r"please use (\w+)")
    if found:
        return failure.edit(f"it works in {found[1]}", failure.flag("dtype", found[1]))
    if failure.find("bfloat16 is only supported on gpus"):
        return failure.edit("this GPU cannot compute in bfloat16", failure.flag("dtype", "half"))
    return failure.advise("set args: {dtype: ...} to one of those that the log names")


def _quantisation(failure: Failure) -> Fix:
    if found := failure.find(r"specified in the model config \(([\w-]+)\) does not match"):
        return failure.edit(f"the model's own is {found[1]}", failure.flag("quantization", found[1]))
    unknown = failure.find(r"unknown quantization method:? '?([\w-]+).*?\[(.*?)\]")
    if unknown:
        near = difflib.get_close_matches(unknown[1], re.findall(r"[\w-]+", unknown[2]), 1)
        if near:
            return failure.edit(f"there is no {unknown[1]}", failure.flag("quantization", near[0]))
    gpu = failure.find(r"minimum capability: (\d+).*current capability: (\d+)")
    needs = f"it needs compute capability {gpu[1]}, this GPU has {gpu[2]}: " if gpu else ""
    return failure.advise(
        f"{needs}choose another checkpoint of the model, such as AWQ or GPTQ, or unquantised"
    )


def _lora(failure: Failure) -> Fix:
    rank = failure.number(r"lora rank (\d+) is greater")
    if rank:
        fits = next((n for n in LORA_RANKS if n >= rank), None)
        if fits is None:
            return failure.advise(
                f"vLLM takes adapters of rank {LORA_RANKS[-1]} at most, this one has {rank}"
            )
        return failure.edit(f"an adapter has rank {rank}", failure.flag("max-lora-rank", fits))
    if failure.find("does not support lora"):
        return failure.advise("this model takes no adapters: remove enable-lora and lora-modules")
    return failure.edit("it was started without LoRA", failure.flag("enable-lora", True))


def _sleep(failure: Failure) -> Fix:
    if failure.find("sleep mode is not enabled"):
        return failure.edit("it was started without sleep mode", failure.flag("enable-sleep-mode", True))
    needs_it = failure.engine.strategy is Strategy.SLEEP_SWAP or failure.engine.state is EngineState.ASLEEP
    if dict(failure.spec.args).get("enable-sleep-mode") and not needs_it:
        return failure.edit("there is no sleep mode here", failure.flag("enable-sleep-mode", False))
    return failure.advise(
        "there is no sleep mode here: write state: stopped, and rollout: {strategy: recreate}"
    )


def _own_code(failure: Failure) -> Fix:
    where = _hub(failure.spec.model)
    return failure.advise(
        f"read the Python files of {where}; if you trust them: args: {{trust-remote-code: true}}"
    )


def _arguments(failure: Failure) -> Fix:
    found = failure.find(r"unrecognized arguments?: (.+)")
    for word in found[1].split() if found else ():
        key = word.lstrip("-").partition("=")[0].replace("_", "-")
        near = difflib.get_close_matches(key, FLAGS, 1, 0.8)
        if near and near[0] not in dict(failure.spec.args) and key in dict(failure.spec.args):
            return failure.edit(f"there is no flag {key}", Edit(("args", key), rename=near[0]))
    unknown = f"{found[1]} " if found else "what the log names "
    return failure.advise(f"remove {unknown}from args, or use the engine's version that knows it")


def _gated(failure: Failure) -> Fix:
    return failure.advise(
        f"accept the licence on {_hub(failure.spec.model)}, make a token on "
        "https://huggingface.co/settings/tokens, `export HF_TOKEN=...` and apply again"
    )


def _no_model(failure: Failure) -> Fix:
    model = failure.spec.model
    near = difflib.get_close_matches(model, failure.models, 1, 0.8)
    if near and near[0] != model:
        return failure.edit(f"this host has {near[0]}", Edit(("model",), near[0]))
    return failure.advise(
        f"look whether {_hub(model)} exists; a private one needs HF_TOKEN, without a network it must lie here"
    )


def _no_module(failure: Failure) -> Fix:
    module = failure.cause.rpartition(" ")[2]
    package = module.partition(".")[0].replace("_", "-")
    if failure.spec.program is not None:
        how = f"`sage runtime install {failure.spec.runtime}`"
        return failure.advise(f"add it to the runtime: `with: [{package}]` in runtimes, then {how}")
    python = failure.spec.python or f"$SAGE_HOME/runtimes/{failure.spec.runtime}/bin/python"
    return failure.advise(f"{python} -m pip install {package}; `sage doctor` checks the whole environment")


def _mismatch(failure: Failure) -> Fix:
    if failure.find("driver on your system is too old|driver version is insufficient"):
        return failure.advise(
            "install a newer NVIDIA driver (https://www.nvidia.com/drivers), or an engine version built for "
            "the older CUDA; `sage doctor` tells which"
        )
    version = failure.spec.program.version if failure.spec.program else "VERSION"
    return failure.advise(
        "its torch is not the one that the engine was built with: let the engine choose torch in a new "
        f'environment: runtimes: {{{failure.spec.runtime}: "{version}"}}, then `sage runtime install`'
    )


def _head_size(failure: Failure) -> Fix:
    if failure.takes_vllm_flags and dict(failure.spec.args).get("attention-backend"):
        return failure.advise("remove attention-backend from args: vLLM then takes one that can")
    return failure.advise(
        "try another attention backend, args: {attention-backend: TRITON_ATTN}; the smallest heads have none"
    )


def _architecture(failure: Failure) -> Fix:
    version = failure.spec.program.version if failure.spec.program else ""
    now = f" than {version}" if version else ""
    return failure.advise(f"a newer engine{now} may know it: runtimes: {{{failure.spec.runtime}: VERSION}}")


def _port(failure: Failure) -> Fix:
    port, count = failure.engine.placement.port, failure.engine.replicas
    if port is None:
        return failure.advise("apply again: sage then chooses a port that is free")
    free = (n for n in range(port + 1, 65536 - count) if not failure.ports & set(range(n, n + count)))
    why = failure.said if failure.said.startswith("port ") else f"port {port} is taken"
    return failure.edit(why, Edit(("port",), next(free)))


def _late(failure: Failure) -> Fix | None:
    if ": " in failure.cause:  # it waited for its model, or for the disk
        return fix_for(replace(failure, cause=failure.cause.partition(": ")[2]))
    own = failure.engine.live.health.startup_timeout
    waited = _seconds(failure.cause)
    if waited < own:
        return failure.advise(f"it had {waited:g} s of its {own:g} s: apply without --timeout")
    if failure.engine.live.health.probe is ProbeKind.HTTP and failure.find("404|connection refused"):
        return failure.advise("look at health.path and the port in its command: it does not answer there")
    return failure.edit(
        f"it was not ready after {own:g} s", Edit(("health", "startup_timeout"), _duration(own * 2))
    )


def _seconds(cause: str) -> float:
    found = re.search(r"within ([\d.]+) s", cause)
    return float(found[1]) if found else 0.0


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g}m" if seconds % 60 == 0 else f"{seconds:g}s"


def _fetching(failure: Failure) -> Fix:
    return failure.advise(
        "let it reach the hub (HTTPS_PROXY and HF_ENDPOINT are passed on), or fetch the model elsewhere and "
        f"copy it to $SAGE_HOME/models/{failure.spec.model}"
    )


def _disk(failure: Failure) -> Fix:
    return failure.advise(
        "free space: `sage doctor` shows the disks, `hf cache scan` what the model cache holds"
    )


RULES: tuple[tuple[str, Callable[[Failure], Fix | None]], ...] = (
    ("not enough free GPU memory at start", memoryfixes.taken),
    ("KV cache does not fit", memoryfixes.kv_cache),
    ("CUDA out of memory", memoryfixes.out_of_memory),
    ("max-model-len is more than the model has", _length),
    ("max-num-batched-tokens is too small", _batched),
    ("tensor_parallel does not divide the model", _divides),
    ("unsupported dtype", _dtype),
    ("unsupported quantisation", _quantisation),
    ("LoRA is not set up", _lora),
    ("sleep mode is not to be had", _sleep),
    ("the model brings code of its own", _own_code),
    ("unrecognized arguments", _arguments),
    ("address already in use", _port),
    ("gated model or no access", _gated),
    ("model not found", _no_model),
    ("model cannot be fetched", _fetching),
    ("no module named ", _no_module),
    ("torch, CUDA and driver do not match", _mismatch),
    ("unsupported head size", _head_size),
    ("unsupported architecture", _architecture),
    ("disk full", _disk),
    ("not ready within", _late),
)
