"""`sage llm engine`: one engine after the other."""

from typing import Annotated, Literal

import cyclopts

from sage_reconcile.cli.llm import options as o
from sage_reconcile.cli.stackfile import Json

app = cyclopts.App(
    name="engine",
    help="Start, list and stop single engines.\n\nExample: sage llm engine start Qwen/Qwen2.5-7B-Instruct",
)


@app.command
def start(  # noqa: PLR0913 - one parameter per option
    model: Annotated[str, cyclopts.Parameter(help="A Hugging Face id, or a directory.")],
    /,
    *,
    name: o.Name = None,
    engine_kind: Annotated[
        Literal["llm", "embedding"], cyclopts.Parameter(help="What the engine does.")
    ] = "llm",
    engine_port: o.Port = None,
    tensor_parallel: o.TensorParallel = None,
    pipeline_parallel: o.PipelineParallel = None,
    use_gpu: o.UseGpu = None,
    runtime: o.Runtime = None,
    label: o.Label = None,
    max_concurrent: o.MaxConcurrent = None,
    max_model_len: o.MaxModelLen = None,
    gpu_memory: o.Memory = None,
    required_memory_gb: o.RequiredMemory = None,
    arg: o.Args = None,
    dry_run: o.DryRun = False,
    no_wait: o.NoWait = False,
    timeout: o.Timeout = None,
    yes: o.Yes = False,
) -> int:
    """Start an engine and wait until it has answered a real request.

    It becomes an entry of adhoc.yaml. Options that are left out keep what the entry says.

    A start that fails leaves the file, and what ran before, as it was, and says why.

    Example: sage llm engine start Qwen/Qwen2.5-7B-Instruct -tp 2 --label main
    """
    from sage_reconcile.cli.llm.starting import start_engine

    args = o.args_of(arg, **({"max-model-len": max_model_len} if max_model_len else {}))
    fields = o.given(
        kind=engine_kind if engine_kind != "llm" else None,
        model=model,
        runtime=runtime,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        port=engine_port,
        use_gpu=use_gpu,
        label=label,
        max_concurrent=max_concurrent,
        gpu_memory=o.memory_of(gpu_memory, required_memory_gb),
        args=args,
    )
    called = o.checked_name(name) if name else o.name_of(model)
    flags = {"yes": yes, "dry_run": dry_run, "no_wait": no_wait, "timeout": timeout}
    return start_engine(called, fields, flags)


@app.command(name="list")
def list_(*, json: Json = False) -> int:
    """List the engines of this SAGE_HOME, and those of adhoc.yaml that are stopped.

    Example: sage llm engine list
    """
    from sage_reconcile.cli.llm.look import show_engines

    return show_engines(json)


@app.command
def stop(
    engine: o.Ids,
    /,
    *,
    drain: Annotated[
        bool,
        cyclopts.Parameter(
            name="--drain", negative="--force", help="Let requests in flight finish, or wait for nobody."
        ),
    ] = True,
) -> int:
    """Stop an engine, every process of it. Its entry stays with `state: stopped`: a start brings it back.

    Example: sage llm engine stop qwen2.5-7b-instruct
    """
    from sage_reconcile.cli.llm.stopping import stop_engines

    return stop_engines([engine], force=not drain)


@app.command
def remove(engine: o.Ids, /) -> int:
    """Stop an engine if it runs, and take its entry out of adhoc.yaml.

    Example: sage llm engine remove qwen2.5-7b-instruct
    """
    from sage_reconcile.cli.llm.stopping import stop_engines

    return stop_engines([engine], remove=True)
