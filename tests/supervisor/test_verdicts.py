"""Each known cause, by a realistic excerpt of the log that shows it."""

import signal

import pytest

from sage_reconcile.supervisor.verdicts import FETCHING, RULES, verdict, waits_for

VLLM_END = """\
(APIServer pid=4120) Traceback (most recent call last):
(APIServer pid=4120)   File "/opt/vllm/lib/python3.12/vllm/v1/engine/utils.py", line 784, in wait
(APIServer pid=4120) RuntimeError: Engine core initialization failed. See root cause above.
"""

CASES = {
    "port, uvicorn": (
        "ERROR:    [Errno 98] error while trying to bind on address ('::1', 8901): address already in use",
        "address already in use",
    ),
    "port, vllm": ("OSError: [Errno 98] Address already in use", "address already in use"),
    "port, llama.cpp": (
        "srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080",
        "address already in use",
    ),
    "oom": (
        "(EngineCore pid=4300) ERROR 11-23 10:00:00 torch.OutOfMemoryError: CUDA out of memory. "
        "Tried to allocate 1.16 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.05 GiB is free.\n"
        + VLLM_END,
        "CUDA out of memory",
    ),
    "oom, driver": ("RuntimeError: CUDA error: out of memory", "CUDA out of memory"),
    "no blocks": (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` "
        "when initializing the engine.\n" + VLLM_END,
        "KV cache does not fit",
    ),
    "max seq len": (
        "ValueError: To serve at least one request with the models's max seq len (131072), (16 GiB KV "
        "cache is needed, which is larger than the available KV cache memory (5.63 GiB). Based on the "
        "available memory, the estimated maximum model length is 46112.",
        "KV cache does not fit",
    ),
    "max seq len, older": (
        "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens that can be "
        "stored in KV cache (12208).",
        "KV cache does not fit",
    ),
    "free memory": (
        "ValueError: Free memory on device cuda:0 (30/79 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 71.2 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
        "processes.\n" + VLLM_END,
        "not enough free GPU memory at start",
    ),
    "gated": (
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-67)\n\n"
        "Cannot access gated repo for url https://huggingface.co/meta-llama/Llama-3.1-8B/.\n"
        "Access to model meta-llama/Llama-3.1-8B is restricted. You must have access to it.",
        "gated model or no access",
    ),
    "forbidden": (
        "requests.exceptions.HTTPError: 403 Client Error: Forbidden for url: https://huggingface.co/x/y",
        "gated model or no access",
    ),
    "no such repository": (
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-67)\n\n"
        "Repository Not Found for url: https://huggingface.co/api/models/Qwen/Qwen9.\n"
        "If you are trying to access a private or gated repo, make sure you are authenticated.",
        "model not found",
    ),
    "no such path": (
        "OSError: /models/nothing is not a local folder and is not a valid model identifier listed on "
        "'https://huggingface.co/models'\nIf this is a private repository, make sure to pass a token",
        "model not found",
    ),
    "offline": (
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder "
        "for the specified revision on the local disk and outgoing traffic has been disabled.",
        "model not found",
    ),
    "no network, vllm": (
        "(APIServer pid=4120) '(MaxRetryError(\"HTTPSConnectionPool(host='huggingface.co', port=443): Max "
        'retries exceeded: /Qwen/Nope/resolve/main/config.json (Caused by NameResolutionError("<urllib3.'
        "connection.HTTPSConnection object at 0x7f>: Failed to resolve 'huggingface.co' ([Errno -3] "
        "Temporary failure in name resolution)\"))\"), '(Request ID: 5f)')' thrown while requesting HEAD "
        "https://huggingface.co/Qwen/Nope/resolve/main/config.json\nRetrying in 1s [Retry 1/5].",
        "model cannot be fetched",
    ),
    "no network, httpx": (
        "httpx.ConnectError: [Errno -3] Temporary failure in name resolution",
        "model cannot be fetched",
    ),
    "no network, transformers": (
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them "
        "in the cached files.\nCheck your internet connection or see how to run the library in offline mode "
        "at 'https://huggingface.co/docs/transformers/installation#offline-mode'.",
        "model cannot be fetched",
    ),
    "no network, sentence-transformers": (
        "sage embedding: cannot load Qwen/Nope: We couldn't connect to 'https://huggingface.co' to load the "
        "files, and couldn't find them in the cached files.",
        "model cannot be fetched",
    ),
    "no network, hub": (
        "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file "
        "on the Hub and we cannot find the requested files in the local cache. Please check your connection.",
        "model cannot be fetched",
    ),
    "hub switched off": (
        "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach https://huggingface.co/api/models/Qwen/x: "
        "offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE` environment variable.",
        "model cannot be fetched",
    ),
    "no such repository, vllm": (
        "ValueError: Invalid repository ID or local directory specified: 'Qwen/Nope'.\n"
        "Please verify the following requirements:\n1. Provide a valid Hugging Face repository ID.",
        "model not found",
    ),
    "no such configuration": (
        "OSError: Can't load the configuration of 'Qwen/Nope'. If you were trying to load it from "
        "'https://huggingface.co/models', make sure you don't have a local directory with the same name.",
        "model not found",
    ),
    "module": ("ModuleNotFoundError: No module named 'vllm.entrypoints'", "no module named vllm.entrypoints"),
    "module, -m": ("/opt/vllm/bin/python3.12: No module named vllm", "no module named vllm"),
    "arguments": (
        "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --max-modle-len 4096",
        "unrecognized arguments",
    ),
    "head size": (
        "ValueError: Head size 16 is not supported by FlashAttention. Supported head sizes are: [64].",
        "unsupported head size",
    ),
    "head dim": ("RuntimeError: Unsupported head_dim: 16", "unsupported head size"),
    "head size, selector": (
        "ValueError: No valid attention backend found. Reasons: {FLASH_ATTN: [head_size not supported]}.",
        "unsupported head size",
    ),
    "architecture": (
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported: []",
        "unsupported architecture",
    ),
    "architecture, transformers": (
        "ValueError: The checkpoint you are trying to load has model type `foo` but Transformers does not "
        "recognize this architecture.",
        "unsupported architecture",
    ),
    "driver": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12020).",
        "torch, CUDA and driver do not match",
    ),
    "symbol": (
        "ImportError: /opt/vllm/_C.abi3.so: undefined symbol: _ZN3c104cuda29c10_cuda_check_implementationE",
        "torch, CUDA and driver do not match",
    ),
    "library": (
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
        "torch, CUDA and driver do not match",
    ),
    "mamba": (
        "ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (524). Reduce max_num_seqs.",
        "KV cache does not fit",
    ),
    "free memory, cpu": (
        "ValueError: Available memory on node 0 (9.2/23.4 GiB) on startup is less than desired CPU memory "
        "utilization (0.92, 21.5 GiB).",
        "not enough free GPU memory at start",
    ),
    "longer than trained": (
        "Value error, User-specified max_model_len (131072) is greater than the derived max_model_len "
        "(max_position_embeddings=8192 or model_max_length=None in model's config.json).",
        "max-model-len is more than the model has",
    ),
    "batched tokens": (
        "ValueError: max_num_batched_tokens (2048) is smaller than max_model_len (8192). This limits "
        "the maximum sequence length to max_num_batched_tokens.",
        "max-num-batched-tokens is too small",
    ),
    "heads": (
        "Value error, Total number of attention heads (28) must be divisible by tensor parallel size (8).",
        "tensor_parallel does not divide the model",
    ),
    "bfloat16": (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla "
        "T4 GPU has compute capability 7.5. You can use float16 instead.",
        "unsupported dtype",
    ),
    "quantisation": (
        "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: "
        "89. Current capability: 86.",
        "unsupported quantisation",
    ),
    "quantisation scheme": (
        "RuntimeError: ('Quantization scheme is not supported for ', 'the current GPU. ')",
        "unsupported quantisation",
    ),
    "lora": (
        "ERROR [core.py:710] RuntimeError: Worker failed with error 'LoRA rank 32 is greater than "
        "max_lora_rank 16.', please check the stack trace above for the root cause",
        "LoRA is not set up",
    ),
    "sleep": ("ValueError: Sleep mode is not supported on current platform.", "sleep mode is not to be had"),
    "own code": (
        "ValueError: The repository org/m contains custom code which must be executed to correctly load the "
        "model. Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
        "the model brings code of its own",
    ),
    "permission": ("PermissionError: [Errno 13] Permission denied: '/models/x'", "permission denied"),
    "disk": ("OSError: [Errno 28] No space left on device: '/root/.cache'", "disk full"),
}


@pytest.mark.parametrize("name", CASES)
def test_known_causes(name: str) -> None:
    log, cause = CASES[name]
    found = verdict(log.splitlines(), 1, None)
    assert found.cause == cause
    assert found.hint
    assert "{" not in found.hint


def test_every_rule_has_a_case() -> None:
    causes = {rule.verdict.cause.replace("{1}", "vllm") for rule in RULES}
    assert causes <= {cause for _, cause in CASES.values()}


def test_the_hint_names_what_is_missing_or_unknown() -> None:
    assert "install vllm in" in verdict(["python: No module named vllm"], 1, None).hint
    assert "--bad 1" in verdict(["x: error: unrecognized arguments: --bad 1"], 2, None).hint


@pytest.mark.parametrize(
    ("code", "number", "cause"),
    [
        (None, 9, "killed (out of host memory?)"),
        (137, None, "killed (out of host memory?)"),
        (None, signal.SIGSEGV, "crashed (SIGSEGV)"),
        (134, None, "crashed (SIGABRT)"),
        (1, None, ""),
        (0, None, ""),
        (255, None, ""),
    ],
)
def test_without_a_known_line_the_way_it_ended_counts(code: int, number: int, cause: str) -> None:
    assert verdict(["INFO all is well"], code, number).cause == cause


@pytest.mark.parametrize(
    "line",
    [
        """WARNING Failed to import from vllm._C with ModuleNotFoundError("No module named 'vllm._C'")""",
        "INFO: 127.0.0.1 - POST /v1/chat/completions HTTP/1.1 404 The model `x` does not exist.",
        "INFO kv_cache_utils: GPU KV cache size: 46,112 tokens, larger than needed",
        "INFO using the head_dim 64 kernel",
        "[W socket.cpp:752] The IPv6 network addresses of (vm, 51234) cannot be retrieved (gai error: -3 - "
        "Temporary failure in name resolution).",
    ],
)
def test_what_healthy_engines_print_is_no_cause(line: str) -> None:
    assert verdict([line], 1, None).cause == ""


def test_an_engine_that_still_runs_may_wait_for_its_model_only() -> None:
    retry = "thrown while requesting HEAD https://huggingface.co/Qwen/Nope/resolve/main/config.json"
    found = waits_for([retry, "Retrying in 8s [Retry 5/5]."])
    assert found is not None
    assert found.cause == "model cannot be fetched"
    assert waits_for(["PermissionError: [Errno 13] Permission denied: '/tmp/x'"]) is None
    assert {rule.verdict.cause for rule in RULES} >= set(FETCHING)


def test_old_lines_and_clean_exits_have_no_cause() -> None:
    line = "torch.OutOfMemoryError: CUDA out of memory."
    assert verdict([line, *["INFO served a request"] * 1000], 1, None).cause == ""
    assert verdict([line], 0, None).cause == ""
