"""sage's own OpenAI embedding server over sentence-transformers."""

from sage_reconcile.engines.activations import TORCH_CONTEXT_MIB
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
from sage_reconcile.model.desired import LaunchSpec


class SentenceTransformers:
    needs_python = True
    uses_model_directory = True
    fills = False

    def command_line(self, spec: LaunchSpec, context: LaunchContext) -> CommandLine:
        place = context.placement
        argv = [context.python, "-m", "sage_reconcile.embedding.server", "--model", context.model]
        argv += ["--served-model-name", spec.model, "--host", place.host, "--port", str(place.port)]
        if arg(spec, "device") is None:
            argv += ["--device", "cpu" if runs_on_cpu(spec, context) else "cuda"]
        if (fraction := _fraction(spec, context)) is not None and arg(spec, "gpu-memory-fraction") is None:
            argv += ["--gpu-memory-fraction", f"{fraction:.4g}"]
        argv += render_args(spec)
        env = gpu_environment(spec, context) | hub_environment(context)
        return CommandLine(tuple(argv), frozen_env(env), spec.model)

    def need_mib(self, spec: LaunchSpec, gpu_total_mib: int) -> int | None:
        return declared_need_mib(spec, gpu_total_mib)


def _fraction(spec: LaunchSpec, context: LaunchContext) -> float | None:
    """What torch may allocate of the GPU for the process to stay within `gpu_memory`: its CUDA context is not
    torch's. None where the file says nothing, or so little that only the context would be left."""
    total = context.gpu_total_mib
    if not total or runs_on_cpu(spec, context):
        return None
    given = declared_need_mib(spec, total)
    if given is None or given <= TORCH_CONTEXT_MIB:
        return None
    return (given - TORCH_CONTEXT_MIB) / total
