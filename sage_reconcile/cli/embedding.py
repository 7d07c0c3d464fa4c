"""`sage embedding`: embedding engines."""

from typing import Annotated

import cyclopts

from sage_reconcile.cli.llm import options as o
from sage_reconcile.cli.stackfile import Json

app = cyclopts.App(
    name="embedding",
    help="Start, list and try embedding engines.\n\nExample: sage embedding start BAAI/bge-m3",
)


@app.command
def start(  # noqa: PLR0913 - one parameter per option
    model: Annotated[str, cyclopts.Parameter(help="A Hugging Face id, or a directory.")],
    /,
    *,
    name: o.Name = None,
    port: o.EmbeddingPort = None,
    use_gpu: o.UseGpu = None,
    runtime: o.Runtime = None,
    label: o.Label = None,
    gpu_memory: o.Memory = None,
    arg: o.Args = None,
    dry_run: o.DryRun = False,
    no_wait: o.NoWait = False,
    timeout: o.Timeout = None,
    yes: o.Yes = False,
) -> int:
    """Start an embedding engine and wait until it has embedded a text; as `sage llm engine start` does.

    Example: sage embedding start BAAI/bge-m3 --use-gpu
    """
    from sage_reconcile.cli.llm.starting import start_engine

    fields = o.given(
        kind="embedding",
        model=model,
        runtime=runtime,
        port=port,
        use_gpu=use_gpu,
        label=label,
        gpu_memory=o.memory_of(gpu_memory),
        args=o.args_of(arg),
    )
    called = o.checked_name(name) if name else o.name_of(model)
    return start_engine(
        called, fields, {"yes": yes, "dry_run": dry_run, "no_wait": no_wait, "timeout": timeout}
    )


@app.command(name="list")
def list_(*, json: Json = False) -> int:
    """List the embedding engines of this SAGE_HOME.

    Example: sage embedding list
    """
    from sage_reconcile.cli.llm.look import show_engines

    return show_engines(json, "embedding")


@app.command(name="test")
def try_(
    *texts: Annotated[str, cyclopts.Parameter(help="What to embed; of several, how near they are.")],
    engine: Annotated[
        str | None,
        cyclopts.Parameter(name=["--engine", "-e"], help="Its ID; else the only one that is ready."),
    ] = None,
    json: Json = False,
) -> int:
    """Embed texts by an engine itself, without the gateway: dimensions, time, and how near the texts are.

    Example: sage embedding test "a cat" "a kitten"
    """
    from sage_reconcile.cli.llm.embed import try_engine
    from sage_reconcile.render.print import print_json

    found = try_engine(engine, texts or ("Hello, world.",))
    if json:
        print_json(found)
        return 0
    took = f"{found['seconds'] * 1000:.0f} ms"
    print(f"{found['engine']}: {found['dimensions']} dimensions, {took} ({found['url']})")
    for first, second, cosine in found["similarity"]:
        print(f"  {cosine:6.3f}  {first!r} and {second!r}")
    return 0
