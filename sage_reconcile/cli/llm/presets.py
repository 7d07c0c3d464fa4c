"""`sage llm preset`: the stack files that come with sage."""

from pathlib import Path
from typing import Annotated

import cyclopts

from sage_reconcile.cli.llm import options as o
from sage_reconcile.cli.stackfile import Json

app = cyclopts.App(
    name="preset",
    help="Show and apply the stack files that come with sage.\n\n"
    "Example: sage llm preset apply -n quickstart",
)


@app.command(name="list")
def list_(*, json: Json = False) -> int:
    """List the presets: name, what it is, and its models.

    Example: sage llm preset list
    """
    from rich.table import Table

    from sage_reconcile import resources
    from sage_reconcile.render.print import console, print_json
    from sage_reconcile.stack.load import load

    rows = []
    for name in resources.presets():
        model = load([resources.preset(name)], {}, portable=True).model
        models = [engine.model for engine in model.engines]
        rows.append({"name": name, "description": model.description, "models": models})
    if json:
        print_json({"presets": rows})
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("PRESET", "WHAT", "MODELS"):
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(str(row["name"]), str(row["description"]), ", ".join(map(str, row["models"])))
    console().print(table, soft_wrap=False)
    return 0


@app.command
def show(
    name: Annotated[str, cyclopts.Parameter(help="As `sage llm preset list` names it.")],
    /,
) -> int:
    """Print a preset: a stack file to start from.

    Example: sage llm preset show quickstart > sage.yaml
    """
    print(_preset(name).read_text(encoding="utf-8"), end="")
    return 0


@app.command
def apply(
    *,
    name: Annotated[
        str | None,
        cyclopts.Parameter(name=["--name", "-n"], help="As `sage llm preset list` names it."),
    ] = None,
    file: Annotated[
        Path | None, cyclopts.Parameter(help="A file instead of a preset that comes along.")
    ] = None,
    yes: Annotated[bool, cyclopts.Parameter(name=["--yes", "-y"], negative="", help="Do not ask.")] = False,
    dry_run: Annotated[bool, cyclopts.Parameter(negative="", help="Only show the plan.")] = False,
    no_rollback: Annotated[
        bool, cyclopts.Parameter(negative="", help="Leave what did start when an engine does not get ready.")
    ] = False,
    timeout: o.Timeout = None,
) -> int:
    """Make the engines of a preset run: its stack, and no other, becomes what the file says.

    When an engine does not get ready, what was started with it is stopped, and what was replaced comes back.

    Example: sage llm preset apply -n quickstart --yes
    """
    from sage_reconcile.apply.execute import Options
    from sage_reconcile.cli.llm.whole import apply_whole
    from sage_reconcile.errors import PermanentError

    if (name is None) == (file is None):
        raise PermanentError("name a preset with -n (`sage llm preset list`), or a file with --file")
    path = _preset(name) if name is not None else file
    assert path is not None
    return apply_whole(path, Options(timeout=timeout, rollback=not no_rollback), yes, dry_run)


def _preset(name: str) -> Path:
    from sage_reconcile import resources
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.stack.problems import did_you_mean

    known = resources.presets()
    if name not in known:
        hint = did_you_mean(name, known) or f"there are: {', '.join(known)}"
        raise PermanentError(f"no preset named {name}; {hint}")
    return resources.preset(name)
