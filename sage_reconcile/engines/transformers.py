"""`transformers serve`: any causal model of the transformers library, one request at a time."""

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


class Transformers:
    needs_python = True
    uses_model_directory = True
    fills = False

    def command_line(self, spec: LaunchSpec, context: LaunchContext) -> CommandLine:
        place = context.placement
        # It answers only to the name that it was started with, and puts that name into its replies. Started
        # in the folder of the host's models, the model's own name is a path too, and clients see no path.
        model, cwd = context.model, None
        if spec.cwd is None and context.model.endswith(f"/{spec.model}"):
            model, cwd = spec.model, context.model.removesuffix(f"/{spec.model}")
        argv = [context.python, "-m", "transformers.cli.transformers", "serve", model]
        argv += ["--host", place.host, "--port", str(place.port)]
        if arg(spec, "device") is None:
            argv += ["--device", "cpu" if runs_on_cpu(spec, context) else "cuda"]
        argv += render_args(spec)
        env = gpu_environment(spec, context) | hub_environment(context)
        return CommandLine(tuple(argv), frozen_env(env), model, cwd)

    def need_mib(self, spec: LaunchSpec, gpu_total_mib: int) -> int | None:
        return declared_need_mib(spec, gpu_total_mib)
