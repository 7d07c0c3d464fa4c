"""Why an engine ended, from its last output: an ordered table, the first match wins. Pure."""

import re
import signal
from collections.abc import Sequence
from typing import NamedTuple


class Verdict(NamedTuple):
    """`cause` is a known one or ""; `hint` is what to do next, `said` the line of the log that shows it."""

    cause: str
    hint: str
    said: str = ""


class Rule(NamedTuple):
    pattern: re.Pattern[str]
    verdict: Verdict


def _rule(pattern: str, cause: str, hint: str) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE), Verdict(cause, hint))


# Specific before general: vLLM wraps the root cause in a traceback of its own, and a failed allocation is
# also reported by whatever had asked for the memory. `{1}` in a text is the pattern's group.
RULES = (
    _rule(
        r"address already in use|errno 98\b|port \d+ is (?:already )?(?:in use|occupied)|couldn'?t bind\b",
        "address already in use",
        "another process holds the engine's port: end it, or choose another port in the stack file",
    ),
    _rule(
        r"(?:free|available) memory on \S+.*less than desired (?:gpu|cpu) memory utilization",
        "not enough free GPU memory at start",
        "something else holds memory of this GPU: free it, or lower gpu_memory",
    ),
    _rule(
        r"no available memory for the cache blocks|kv cache is needed, which is larger than the available"
        r"|max seq len\b.* is larger than the maximum number of tokens that can be stored in kv cache"
        r"|max_num_seqs \(\d+\) exceeds available mamba cache blocks",
        "KV cache does not fit",
        "lower max-model-len or raise gpu_memory",
    ),
    _rule(
        r"user-specified max_model_len \(\d+\) is greater than the derived max_model_len",
        "max-model-len is more than the model has",
        "lower max-model-len to what the model was trained for",
    ),
    _rule(
        r"max_num_batched_tokens \(\d+\) (?:is smaller than max_model_len|must be greater than or equal to)",
        "max-num-batched-tokens is too small",
        "raise max-num-batched-tokens, or lower max-model-len and max-num-seqs",
    ),
    _rule(
        r"attention heads \(\d+\) must be divisible by tensor parallel size",
        "tensor_parallel does not divide the model",
        "choose a tensor_parallel that divides the number of the model's attention heads",
    ),
    _rule(
        r"bfloat16 is only supported on gpus with|does not support b?float(?:16|32)\. reason"
        r"|torch\.\w+ is not supported for quantization method",
        "unsupported dtype",
        "set args.dtype to one that this GPU and this model work with",
    ),
    _rule(
        r"quantization (?:method|scheme) .*(?:not supported|does not match)|unknown quantization method"
        r"|no such quantization|(?:invalid|unsupported) quantization",
        "unsupported quantisation",
        "choose a checkpoint in a quantisation that this GPU and this engine version can compute",
    ),
    _rule(
        r"lora rank \d+ is greater than max_lora_rank|lora is not enabled|add_lora .*not enabled"
        r"|does not support lora\b",
        "LoRA is not set up",
        "start the engine with enable-lora, and with a max-lora-rank as large as the adapter's",
    ),
    _rule(
        r"sleep mode is not (?:enabled|supported)",
        "sleep mode is not to be had",
        "sleep mode needs enable-sleep-mode, and a GPU that it works on",
    ),
    _rule(
        r"trust[_-]remote[_-]code\s*[=`]|contains custom code which must be executed",
        "the model brings code of its own",
        "read that code; then allow it with trust-remote-code: true in args",
    ),
    _rule(
        r"cuda (?:error: )?out of memory|outofmemoryerror|cuda_error_out_of_memory|hip out of memory",
        "CUDA out of memory",
        "raise gpu_memory, lower max-model-len, or give the engine more GPUs",
    ),
    _rule(
        r"no space left on device|errno 28\b|disk quota exceeded",
        "disk full",
        "free space where the model cache and the temporary files lie",
    ),
    # Before the missing ones: without a network the hub's library ends with "not found in the cache". That a
    # name cannot be resolved is no such thing by itself: torch warns of its own host's name so.
    _rule(
        r"couldn'?t connect to '?https?://|thrown while requesting (?:head|get) https?://"
        r"|failed to resolve '|nameresolutionerror|connecterror: .*name resolution"
        r"|error happened while trying to locate the file|offline mode is enabled",
        "model cannot be fetched",
        "there is no way to the model hub: check network and proxy, or put the model into the cache or into "
        "SAGE_HOME/models",
    ),
    # Before the gated ones: the hub answers 401 for a repository that does not exist, too.
    _rule(
        r"repositorynotfounderror|repository not found"
        r"|is not a local folder and is not a valid model identifier"
        r"|hfvalidationerror|entrynotfounderror|invalid repository id or local directory"
        r"|can'?t load (?:the )?[\w ]+ (?:of|for) '|find the requested files in the (?:local|disk) cache"
        r"|incorrect path_or_model_id|does not appear to have a file named"
        r"|no such file or directory: '?\S*(?:config\.json|\.safetensors|\.gguf|tokenizer\S*)",
        "model not found",
        "check the model's name or path, and HF_TOKEN if it is private; offline it has to be in the cache",
    ),
    _rule(
        r"gatedrepoerror|gated repo|access to model .* is restricted|(?:401|403) client error"
        r"|invalid (?:user token|username or password)|you must (?:be authenticated|have access)",
        "gated model or no access",
        "accept the model's licence on its hub page and pass a valid HF_TOKEN in env",
    ),
    _rule(
        # As an error, not as vLLM's warnings about optional modules quote it.
        r"modulenotfounderror: no module named '?([\w.]+)|\bpython[\d.]*: no module named '?([\w.]+)",
        "no module named {1}",
        "install {1} in the Python environment of the engine's runtime",
    ),
    _rule(
        r"unrecognized arguments?: (.+)|no such option:? (\S+)|unknown (?:option|argument):? (\S+)",
        "unrecognized arguments",
        "this version of the engine does not know: {1}; check args in the stack file",
    ),
    _rule(
        r"\bhead[ _]?(?:size|dim)\b.{0,40}(?:not supported|unsupported)|unsupported head[ _]?(?:size|dim)",
        "unsupported head size",
        "this model's attention head size does not work with this attention backend: choose another backend",
    ),
    _rule(
        r"model architectures? .*(?:not supported|are not supported|failed to be inspected)"
        r"|does not recognize this architecture|(?:unsupported|unknown) (?:model )?architecture",
        "unsupported architecture",
        "this version of the engine cannot run the model: update the runtime or choose another model",
    ),
    _rule(
        r"nvidia driver on your system is too old|driver version is insufficient|no kernel image is available"
        r"|undefined symbol: .*(?:c10|torch|at\d|cuda|cublas|nccl)"
        r"|lib(?:cu\w+|nccl|nvrtc)\.so[\d.]*: cannot open shared object|unsupported display driver"
        r"|torch not compiled with cuda enabled|cuda driver initialization failed|found no nvidia driver"
        r"|the detected cuda version .* mismatches",
        "torch, CUDA and driver do not match",
        "install the torch build that this engine version asks for, fit for the GPU driver; see sage doctor",
    ),
    _rule(
        r"permission ?(?:error|denied)",
        "permission denied",
        "give the user that runs sage access to what the last lines name",
    ),
)

# What an engine waits for while it runs on, trying again and again; other causes end it.
FETCHING = ("model cannot be fetched", "model not found", "gated model or no access", "disk full")

# What keeps an engine from starting without any fault of its own, and may pass.
OUTSIDE = (
    "address already in use",
    "listens on its port",
    "not enough free GPU memory at start",
    "model cannot be fetched",
    "disk full",
)

KILLED = Verdict(
    "killed (out of host memory?)",
    "look for the out-of-memory killer in the kernel's log (dmesg); give the engine less memory",
)
CRASHED = "crashed ({})"
# A traceback, and a second one of the process that waited for the first.
LINES = 300
CRASH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
UNKNOWN = Verdict("", "`sage logs` shows what it printed")


def verdict(tail: Sequence[str], code: int | None, number: int | None) -> Verdict:
    """The verdict on a process that ended by itself, with exit `code` or killed by signal `number`.

    A clean exit has no cause, whatever it had printed. Within a rule the last matching line counts.
    """
    if code == 0:
        return Verdict("", "the engine ended by itself, without an error")
    if known := _first(RULES, tail):
        return known
    if code is not None and code > 128:
        number = code - 128  # a shell in between tells its child's signal so
    if number == signal.SIGKILL:
        return KILLED
    if number in CRASH_SIGNALS:
        return Verdict(CRASHED.format(signal.Signals(number).name), UNKNOWN.hint)
    return UNKNOWN


def waits_for(tail: Sequence[str]) -> Verdict | None:
    """Why an engine that still runs cannot get its model; None where its output shows no such thing."""
    return _first([rule for rule in RULES if rule.verdict.cause in FETCHING], tail)


def _first(rules: Sequence[Rule], tail: Sequence[str]) -> Verdict | None:
    for rule in rules:
        for line in reversed(tail[-LINES:]):
            match = rule.pattern.search(line)
            if match:
                return _fill(rule.verdict, match)._replace(said=line.strip())
    return None


def _fill(found: Verdict, match: re.Match[str]) -> Verdict:
    detail = next((group for group in match.groups() if group), "").strip()
    return Verdict(found.cause.replace("{1}", detail), found.hint.replace("{1}", detail))
