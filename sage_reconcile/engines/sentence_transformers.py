"""sage's own OpenAI embedding server over sentence-transformers."""

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
        argv += render_args(spec)
        env = gpu_environment(spec, context) | hub_environment(context)
        return CommandLine(tuple(argv), frozen_env(env), spec.model)

    def need_mib(self, spec: LaunchSpec, gpu_total_mib: int) -> int | None:
        return declared_need_mib(spec, gpu_total_mib)
