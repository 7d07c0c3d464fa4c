"""Any program that serves OpenAI HTTP, by a command template: llama-server, SGLang, TEI, a script."""

from sage_reconcile.engines.base import (
    CommandLine,
    LaunchContext,
    declared_need_mib,
    frozen_env,
    gpu_environment,
    render_args,
)
from sage_reconcile.model.desired import LaunchSpec


class Command:
    needs_python = False
    uses_model_directory = False
    fills = False

    def command_line(self, spec: LaunchSpec, context: LaunchContext) -> CommandLine:
        values = {
            "{host}": context.placement.host,
            "{port}": str(context.placement.port),
            "{model}": spec.model,
            "{gpus}": ",".join(context.visible),
        }
        argv = []
        for part in spec.command:
            for placeholder, value in values.items():
                part = part.replace(placeholder, value)
            argv.append(part)
        argv += render_args(spec)
        return CommandLine(tuple(argv), frozen_env(gpu_environment(spec, context)), spec.model)

    def need_mib(self, spec: LaunchSpec, gpu_total_mib: int) -> int | None:
        return declared_need_mib(spec, gpu_total_mib)
