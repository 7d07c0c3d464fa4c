"""vLLM, started as a module: its console script fails in some of its own distributions."""

from sage_reconcile.engines.activations import VLLM_CONTEXT_MIB
from sage_reconcile.engines.base import (
    CommandLine,
    LaunchContext,
    arg,
    declared_need_mib,
    frozen_env,
    gpu_environment,
    hub_environment,
    render_args,
    runs_on_cpu,
)
from sage_reconcile.model.desired import Kind, LaunchSpec

DEFAULT_UTILIZATION = 0.9
"""Share of a GPU that an engine takes when the file says nothing. Always passed on, because vLLM's own
default differs between versions and the memory ledger must count what the engine will really take."""


class Vllm:
    needs_python = True
    uses_model_directory = True
    fills = True

    def command_line(self, spec: LaunchSpec, context: LaunchContext) -> CommandLine:
        place = context.placement
        argv = [context.python, "-m", "vllm.entrypoints.openai.api_server", "--model", context.model]
        argv += ["--host", place.host, "--port", str(place.port)]
        served = arg(spec, "served-model-name")
        if served is None:
            argv += ["--served-model-name", spec.model]
        if spec.tensor_parallel > 1:
            argv += ["--tensor-parallel-size", str(spec.tensor_parallel)]
        if spec.pipeline_parallel > 1:
            argv += ["--pipeline-parallel-size", str(spec.pipeline_parallel)]
        if spec.kind is Kind.EMBEDDING and arg(spec, "runner") is None:
            argv += ["--runner", "pooling"]
        if not runs_on_cpu(spec, context) and arg(spec, "gpu-memory-utilization") is None:
            argv += ["--gpu-memory-utilization", f"{_told(spec, context):.4g}"]
        argv += render_args(spec, negative=True)
        env = {"VLLM_NO_USAGE_STATS": "1", **gpu_environment(spec, context), **hub_environment(context)}
        if spec.can_sleep:
            env["VLLM_SERVER_DEV_MODE"] = "1"
        if spec.takes_adapters:
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        name = served[0] if isinstance(served, tuple) else served
        return CommandLine(tuple(argv), frozen_env(env), str(name) if name else spec.model)

    def need_mib(self, spec: LaunchSpec, gpu_total_mib: int) -> int | None:
        share = share_mib(spec, gpu_total_mib)
        # What goes beyond the share is known of one card and version: it never makes an empty GPU too small.
        return share + min(VLLM_CONTEXT_MIB, max(0, gpu_total_mib - share))


def share_mib(spec: LaunchSpec, gpu_total_mib: int) -> int:
    """MiB of a GPU that vLLM fills; its CUDA context comes on top."""
    return int(utilization(spec, gpu_total_mib) * gpu_total_mib)


def utilization(spec: LaunchSpec, gpu_total_mib: int | None) -> float:
    """The share of each GPU: `args`, then `gpu_memory`, then the default."""
    given = arg(spec, "gpu-memory-utilization")
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    if isinstance(spec.gpu_memory, float):
        return spec.gpu_memory
    if gpu_total_mib and (need := declared_need_mib(spec, gpu_total_mib)):
        return need / gpu_total_mib
    return DEFAULT_UTILIZATION


def _told(spec: LaunchSpec, context: LaunchContext) -> float:
    """The share that vLLM is told. One that fills nothing needs no more than it was counted with: vLLM
    refuses to start where its share is not free."""
    total, counted = context.gpu_total_mib, context.counted_mib
    if total and counted and spec.gpu_memory == "auto":
        return min(DEFAULT_UTILIZATION, max(1, counted - VLLM_CONTEXT_MIB) / total)
    return utilization(spec, total)
