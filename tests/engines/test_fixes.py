# ruff: noqa: E501 - messages as engines print them
"""What engines print when they do not start, and what mends it: real messages, cut to what matters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sage_reconcile.engines.failures import Failure
from sage_reconcile.engines.fixes import RULES, fix_for
from sage_reconcile.model.desired import (
    DesiredEngine,
    Device,
    EngineState,
    Kind,
    LaunchSpec,
    PlacementSpec,
    Program,
    RouteSpec,
)
from sage_reconcile.model.fixes import Edit, Fix
from sage_reconcile.supervisor.verdicts import RULES as VERDICTS
from sage_reconcile.supervisor.verdicts import verdict

TOTAL = 81_559


def engine(args: Mapping[str, Any] | None = None, port: int | None = None, **fields: Any) -> DesiredEngine:
    values: dict[str, Any] = {"kind": Kind.LLM, "runtime": "vllm", "model": "org/model", "device": Device.GPU}
    spec = LaunchSpec(**(values | fields), args=tuple(sorted((args or {}).items())))
    return DesiredEngine("chat", spec, RouteSpec(("chat",)), PlacementSpec(port))


def fixed(log: str, wanted: DesiredEngine | None = None, **known: Any) -> Fix:
    """The fix of an engine that printed `log` and ended."""
    found = verdict(log.splitlines(), 1, None)
    assert found.cause, log
    failure = Failure(
        wanted or engine(), found.cause, found.said, tuple(log.splitlines()[-20:]), TOTAL, **known
    )
    fix = fix_for(failure)
    assert fix is not None, found.cause
    return fix


KV = (
    "(EngineCore pid=316) ValueError: To serve at least one request with the model's max seq len ({}), ({} GiB KV "
    "cache is needed, which is larger than the available KV cache memory ({} GiB). Based on the available memory, "
    "the estimated maximum model length is {}. Try increasing `gpu_memory_utilization` or decreasing "
    "`max_model_len` when initializing the engine."
)
OLD_KV = (
    "ValueError: The model's max seq len ({}) is larger than the maximum number of tokens that can be stored in "
    "KV cache ({}). Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."
)
FREE = (
    "ValueError: Free memory on device {}({}/{} GiB) on startup is less than desired GPU memory utilization ({}, "
    "71.24 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
NO_BLOCKS = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."
LENGTH = ("args", "max-model-len")

EDITS: dict[str, tuple[str, DesiredEngine, list[Edit]]] = {
    "kv": (KV.format(262144, "24.0", "3.18", 34736), engine(), [Edit(LENGTH, 34736)]),
    "kv, wrapped": (
        "(Worker_TP0) ERROR 11-29 [multiproc_executor.py:597] "
        + KV.format(1048576, "22.5", "17.39", 810208)
        + "\nTraceback\n" * 40,
        engine(),
        [Edit(LENGTH, 810208)],
    ),
    "kv, almost": (KV.format(100000, "4.26", "4.25", 99760), engine(), [Edit(LENGTH, 99760)]),
    "kv, 2024": (OLD_KV.format(32768, 7344), engine(), [Edit(LENGTH, 7344)]),
    "kv, long model": (
        OLD_KV.format(163840, 13360),
        engine({"max-model-len": 163840}),
        [Edit(LENGTH, 13360)],
    ),
    "kv, in extra_args": (
        KV.format(131072, "16.0", "9.97", 81664),
        engine(extra_args=("--enforce-eager", "--max_model_len", "131072")),
        [Edit(("extra_args", 2), "81664")],
    ),
    "kv, in extra_args with =": (
        KV.format(131072, "16.0", "9.97", 81664),
        engine(extra_args=("--max-model-len=131072",)),
        [Edit(("extra_args", 0), "--max-model-len=81664")],
    ),
    "kv, in a command": (
        KV.format(131072, "16.0", "9.97", 81664),
        engine(
            runtime="command", command=("vllm", "serve", "m", "--max-model-len", "131072", "--port", "{port}")
        ),
        [Edit(("command", 4), "81664")],
    ),
    "kv, too short to be of use": (
        KV.format(131072, "16.0", "0.10", 800),
        engine(gpu_memory=0.3),
        [Edit(("gpu_memory",), 0.51)],
    ),
    "kv, too short, a size": (
        KV.format(131072, "16.0", "0.10", 800),
        engine(gpu_memory=24_000),
        [Edit(("gpu_memory",), "40.6GiB")],
    ),
    "kv, too short, a flag": (
        KV.format(131072, "16.0", "-1.20", 0),
        engine({"gpu-memory-utilization": 0.3}),
        [Edit(("args", "gpu-memory-utilization"), 0.53)],
    ),
    "mamba": (
        "ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (524).",
        engine(),
        [Edit(("args", "max-num-seqs"), 524)],
    ),
    "no blocks": (NO_BLOCKS, engine(gpu_memory=0.2), [Edit(("gpu_memory",), 0.9)]),
    "taken": (FREE.format("", "59.32", "79.15", "0.9"), engine(), [Edit(("gpu_memory",), 0.73)]),
    "taken, newer": (FREE.format("cuda:0 ", "30.1", "79.1", "0.9"), engine(), [Edit(("gpu_memory",), 0.37)]),
    "taken, nearly": (
        FREE.format("cuda:0 ", "19.77", "22.05", "0.9"),
        engine(),
        [Edit(("gpu_memory",), 0.88)],
    ),
    "taken, a size": (
        FREE.format("cuda:1 ", "30.1", "79.1", "0.5"),
        engine(gpu_memory=40_960),
        [Edit(("gpu_memory",), "29.2GiB")],
    ),
    "taken, a flag": (
        FREE.format("cuda:0 ", "30.1", "79.1", "0.9"),
        engine({"gpu-memory-utilization": 0.9}),
        [Edit(("args", "gpu-memory-utilization"), 0.37)],
    ),
    "taken, on a CPU": (
        "ValueError: Available memory on node 0 (9.2/23.4 GiB) on startup is less than desired CPU memory "
        "utilization (0.92, 21.5 GiB).",
        engine(device=Device.CPU),
        [Edit(("args", "gpu-memory-utilization"), 0.38)],
    ),
    "sampler": (
        "(VllmWorker rank=7) RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy "
        "requests. Please try lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
        engine(),
        [Edit(("args", "max-num-seqs"), 256)],
    ),
    "longer than trained": (
        "ValueError: User-specified max_model_len (131072) is greater than the derived max_model_len (None=8192 in "
        "model's config.json). This may lead to incorrect model outputs or CUDA errors.",
        engine({"max-model-len": 131072}),
        [Edit(LENGTH, 8192)],
    ),
    "longer than trained, newer": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, "
        "User-specified max_model_len (16384) is greater than the derived max_model_len "
        "(max_position_embeddings=4096.0 or model_max_length=None in model's config.json).",
        engine({"max-model-len": 16384}),
        [Edit(LENGTH, 4096)],
    ),
    "batched": (
        "ValueError: max_num_batched_tokens (2048) is smaller than max_model_len (8192).",
        engine(),
        [Edit(("args", "max-num-batched-tokens"), 8192)],
    ),
    "batched, seqs": (
        "ValueError: max_num_batched_tokens (128) must be greater than or equal to max_num_seqs (256).",
        engine(),
        [Edit(("args", "max-num-batched-tokens"), 256)],
    ),
    "heads, 28 of 8": (
        "ValueError: Total number of attention heads (28) must be divisible by tensor parallel size (8).",
        engine(tensor_parallel=8),
        [Edit(("tensor_parallel",), 7)],
    ),
    "heads, 64 of 3": (
        "Value error, Total number of attention heads (64) must be divisible by tensor parallel size (3).",
        engine(tensor_parallel=3),
        [Edit(("tensor_parallel",), 2)],
    ),
    "heads, 25 of 2": (
        "ValueError: Total number of attention heads (25) must be divisible by tensor parallel size (2).",
        engine(tensor_parallel=2),
        [Edit(("tensor_parallel",), 1)],
    ),
    "bfloat16": (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla "
        "V100-SXM2-32GB GPU has compute capability 7.0. You can use float16 instead.",
        engine(),
        [Edit(("args", "dtype"), "half")],
    ),
    "awq": (
        "Value error, torch.bfloat16 is not supported for quantization method awq. Supported dtypes: "
        "[torch.float16] [type=value_error, input_value=ArgsKwargs((), {'model_config': ...})]",
        engine({"dtype": "bfloat16"}),
        [Edit(("args", "dtype"), "float16")],
    ),
    "float16": (
        "Value error, The model type 'gemma3' does not support float16. Reason: Numerical instability. Please use "
        "bfloat16 or float32 instead. [type=value_error]",
        engine({"dtype": "half"}),
        [Edit(("args", "dtype"), "bfloat16")],
    ),
    "quantisation, another": (
        "ValueError: Quantization method specified in the model config (fp8) does not match the quantization method "
        "specified in the `quantization` argument (gguf).",
        engine({"quantization": "gguf"}),
        [Edit(("args", "quantization"), "fp8")],
    ),
    "quantisation, mistyped": (
        "ValueError: Unknown quantization method: gptq_marln. Must be one of ['awq', 'fp8', 'gptq', 'gptq_marlin'].",
        engine({"quantization": "gptq_marln"}),
        [Edit(("args", "quantization"), "gptq_marlin")],
    ),
    "lora rank": (
        "(EngineCore_DP0) RuntimeError: Worker failed with error 'LoRA rank 40 is greater than max_lora_rank 16.'",
        engine({"enable-lora": True}),
        [Edit(("args", "max-lora-rank"), 64)],
    ),
    "lora off": (
        "ValueError: Call to add_lora method failed: LoRA is not enabled. Use --enable-lora to enable it.",
        engine(),
        [Edit(("args", "enable-lora"), True)],
    ),
    "sleep off": (
        "ERROR serving: Sleep mode is not enabled. Start with --enable-sleep-mode.",
        engine(),
        [Edit(("args", "enable-sleep-mode"), True)],
    ),
    "no sleep here": (
        "ValueError: Sleep mode is not supported on current platform.",
        engine({"enable-sleep-mode": True}),
        [Edit(("args", "enable-sleep-mode"), False)],
    ),
    "mistyped flag": (
        "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --max-modle-len 4096",
        engine({"max-modle-len": 4096}),
        [Edit(("args", "max-modle-len"), rename="max-model-len")],
    ),
    "port": (
        "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8901): address already in use",
        engine(port=8901),
        [Edit(("port",), 8904)],
    ),
}

ADVICE: dict[str, tuple[str, DesiredEngine, str]] = {
    "taken, nearly all": (FREE.format("cuda:0 ", "3.1", "79.1", "0.9"), engine(), "`nvidia-smi`"),
    "no blocks, all given": (NO_BLOCKS, engine(), "tensor_parallel"),
    "out of memory": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.74 GiB. GPU 1 has a total capacity of "
        "23.57 GiB of which 605.88 MiB is free.",
        engine(),
        "tensor_parallel",
    ),
    "quantisation, no GPU for it": (
        "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. "
        "Current capability: 86.",
        engine(),
        "it needs compute capability 89, this GPU has 86",
    ),
    "gated": (
        "huggingface_hub.errors.GatedRepoError: 401 Client Error.\nAccess to model org/model is restricted.",
        engine(),
        "https://huggingface.co/org/model",
    ),
    "missing": (
        "OSError: org/model is not a local folder and is not a valid model identifier listed on 'https://hf.co'",
        engine(),
        "https://huggingface.co/org/model",
    ),
    "no network": (
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files.",
        engine(),
        "$SAGE_HOME/models/org/model",
    ),
    "own code": (
        "ValueError: Loading org/model requires you to execute the configuration file in that repo. Please set the "
        "option `trust_remote_code=True` to remove this error.",
        engine(),
        "if you trust them",
    ),
    "unknown flag": (
        "api_server.py: error: unrecognized arguments: --swap-it-all 3",
        engine({"swap-it-all": 3}),
        "remove --swap-it-all 3 from args",
    ),
    "module": (
        "ModuleNotFoundError: No module named 'flash_attn'",
        engine(python="/opt/vllm/bin/python"),
        "/opt/vllm/bin/python -m pip install flash-attn",
    ),
    "module of a version": (
        "ModuleNotFoundError: No module named 'flash_attn'",
        engine(program=Program("0.24.0")),
        "`with: [flash-attn]`",
    ),
    "driver": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020).",
        engine(),
        "https://www.nvidia.com/drivers",
    ),
    "symbol": (
        "ImportError: /opt/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda29c10_cuda_check_implementationE",
        engine(),
        "`sage runtime install`",
    ),
    "head size": ("RuntimeError: Unsupported head_dim: 16", engine(), "attention-backend"),
    "architecture": (
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",
        engine(program=Program("0.20.0")),
        "a newer engine than 0.20.0",
    ),
    "disk": ("OSError: [Errno 28] No space left on device: '/root/.cache'", engine(), "`sage doctor`"),
    "lora, none": ("ValueError: FooForCausalLM does not support LoRA yet.", engine(), "remove enable-lora"),
    "lora, too large": (
        "ValueError: LoRA rank 1024 is greater than max_lora_rank 16.",
        engine(),
        "512 at most",
    ),
    "sleep wanted": (
        "ValueError: Sleep mode is not supported on current platform.",
        replace(engine({"enable-sleep-mode": True}), state=EngineState.ASLEEP),
        "state: stopped",
    ),
    "heads, another number": (
        "ValueError: Total number of attention heads (28) must be divisible by tensor parallel size (8).",
        engine(tensor_parallel=4),
        "tensor_parallel that divides",
    ),
    "of another program": (
        KV.format(262144, "24.0", "3.18", 34736),
        engine(runtime="command", command=("my-server", "--port", "{port}")),
        "--max-model-len 34736",
    ),
    "a port of sage's choice": ("OSError: [Errno 98] Address already in use", engine(), "apply again"),
    "context length": (
        "ValueError: User-specified max_model_len (9) is greater than the derived max_model_len",
        engine(),
        "config.json",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_an_edit_mends(name: str) -> None:
    log, wanted, edits = EDITS[name]
    fix = fixed(log, wanted, ports=frozenset({8901, 8902, 8903}))
    assert list(fix.edits) == edits
    assert fix.engine == "chat"
    assert fix.why
    assert not fix.instead


@pytest.mark.parametrize("name", ADVICE)
def test_what_a_person_has_to_mend(name: str) -> None:
    log, wanted, words = ADVICE[name]
    fix = fixed(log, wanted)
    assert fix.edits == ()
    assert words in fix.instead


def test_every_cause_has_its_fix_and_a_case() -> None:
    """But for a permission denied: whose file it is, the log says."""
    causes = {rule.verdict.cause.replace("{1}", "x") for rule in VERDICTS} - {"permission denied"}
    starts = [start for start, _ in RULES]
    assert {cause for cause in causes if not any(cause.startswith(start) for start in starts)} == set()
    tried = {verdict(log.splitlines(), 1, None).cause for log, *_ in [*EDITS.values(), *ADVICE.values()]}
    assert {start for start in starts if not any(cause.startswith(start) for cause in tried)} == {
        "not ready within"
    }


def test_a_model_that_the_host_has_under_nearly_this_name() -> None:
    log = "OSError: org/modle is not a local folder and is not a valid model identifier listed on 'https://hf.co'"
    fix = fixed(log, engine(model="org/modle"), models=("org/model", "other/thing"))
    assert fix.edits == (Edit(("model",), "org/model"),)


def test_late_gets_twice_the_time_if_it_had_its_own() -> None:
    late = Failure(engine(), "not ready within 600 s")
    fix = fix_for(late)
    assert fix is not None
    assert fix.edits == (Edit(("health", "startup_timeout"), "20m"),)
    hurried = fix_for(replace(late, cause="not ready within 5 s"))
    assert hurried is not None
    assert "--timeout" in hurried.instead
    fetching = fix_for(replace(late, cause="not ready within 600 s: model cannot be fetched"))
    assert fetching is not None
    assert "SAGE_HOME/models" in fetching.instead


def test_an_unknown_cause_has_none() -> None:
    assert fix_for(Failure(engine(), "crashed (SIGSEGV)")) is None
    assert fix_for(Failure(engine(), "")) is None
