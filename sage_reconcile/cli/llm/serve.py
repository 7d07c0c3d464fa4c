"""`sage llm serve`, `status`, `stop`, `restart`: gateway, LLM and embedding engine in one go."""

from typing import Annotated

from cyclopts import Parameter, validators

from sage_reconcile.cli.llm import options as o
from sage_reconcile.cli.stackfile import Json


def serve(  # noqa: PLR0913 - one parameter per option
    *,
    model: Annotated[
        str | None,
        Parameter(name=["--model", "-m"], help="The LLM; else that of adhoc.yaml, else a small one."),
    ] = None,
    embedding_model: Annotated[
        str | None,
        Parameter(name=["--embedding-model", "-e"], help="The embedding model; else as with --model."),
    ] = None,
    no_embedding: Annotated[bool, Parameter(negative="", help="No embedding engine.")] = False,
    port: o.Port = None,
    embedding_port: o.EmbeddingPort = None,
    gateway_port: Annotated[
        int | None,
        Parameter(
            validator=validators.Number(gte=1, lte=65535),
            help="Port of the gateway; else SAGE_GATEWAY_PORT, else 8000.",
        ),
    ] = None,
    tensor_parallel: o.TensorParallel = None,
    max_model_len: o.MaxModelLen = None,
    gpu_memory: o.Memory = None,
    use_gpu: o.UseGpu = None,
    runtime: o.Runtime = None,
    arg: o.Args = None,
    foreground: Annotated[
        bool, Parameter(negative="", help="Stay, show the log, and stop all of it at Ctrl-C.")
    ] = False,
    dry_run: o.DryRun = False,
    timeout: o.Timeout = None,
    yes: o.Yes = False,
) -> int:
    """Start gateway, LLM and embedding engine, and wait until each has answered.

    The engines are `chat` and `embed` of adhoc.yaml; options that are left out keep what stands there.

    Example: sage llm serve -m Qwen/Qwen2.5-7B-Instruct -e BAAI/bge-m3
    """
    from sage_reconcile.cli.llm.serving import Served, serve_all

    length = {"max-model-len": max_model_len} if max_model_len else {}
    chat = o.given(
        model=model,
        runtime=runtime,
        port=port,
        tensor_parallel=tensor_parallel,
        gpu_memory=o.memory_of(gpu_memory),
        use_gpu=use_gpu,
        args=o.args_of(arg, **length),
    )
    embed = o.given(model=embedding_model, port=embedding_port)
    flags = {"yes": yes, "dry_run": dry_run, "no_wait": False, "timeout": timeout}
    return serve_all(Served(chat, None if no_embedding else embed, gateway_port, foreground), flags)


def status(*, json: Json = False) -> int:
    """Show the gateway and the engines of this SAGE_HOME. Exit status 1 when none of them is ready.

    Example: sage llm status
    """
    from sage_reconcile.cli.llm.look import engine_rows, show_engines
    from sage_reconcile.gatewayd import find
    from sage_reconcile.home import Home
    from sage_reconcile.render.print import print_json

    home = Home.from_environ()
    running, rows = find(home), engine_rows(home)
    if json:
        gateway = {"pid": running.pid, "address": running.options.address} if running else None
        print_json({"gateway": gateway, "engines": rows})
    else:
        where = f"{running.options.address} (pid {running.pid})" if running else "does not run"
        print(f"gateway: {where}")
        show_engines(False)
    return 0 if any(row["state"] == "ready" for row in rows) else 1


def stop(
    *,
    drain: Annotated[
        bool,
        Parameter(name="--drain", negative="--force", help="Let requests in flight finish, or do not wait."),
    ] = True,
) -> int:
    """Stop all engines of adhoc.yaml, and the gateway unless it serves others. `sage llm restart` undoes it.

    Example: sage llm stop
    """
    from sage_reconcile.cli.llm.serving import stop_all

    return stop_all(force=not drain)


def restart(*, timeout: o.Timeout = None) -> int:
    """Give the engines of adhoc.yaml new processes, with everything that the file says of them.

    Where none runs, those that were stopped start again, and the gateway with them.

    Example: sage llm restart
    """
    from sage_reconcile.cli.llm.serving import restart_all

    return restart_all(timeout)
