"""`sage validate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from sage_reconcile.stack.report import Checked


def validate(
    files: Annotated[
        list[Path] | None, Parameter(negative="", help="Stack files; each one is a stack of its own.")
    ] = None,
    *,
    overlays: Annotated[
        list[Path] | None,
        Parameter(
            name=["--file", "-f"],
            negative="",
            help="Files of one stack, each laid over those before; may be repeated.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        Parameter(name="--set", negative="", help="Override one value: engines.chat.replicas=2."),
    ] = None,
    format: Annotated[
        Literal["text", "json", "github", "sarif", "junit"], Parameter(help="Notation of the report.")
    ] = "text",
    portable: Annotated[
        bool,
        Parameter(
            negative="", help="Leave out what depends on this host: model directories, variables, secrets."
        ),
    ] = False,
) -> int:
    """Check stack files without GPU or network; every fault is told at once, with its place.

    FILE defaults to sage.yaml, then stack.yaml. Exit status 0 when all are valid, else 1.

    Example: sage validate stacks/*.yaml --portable --format github
    """
    from sage_reconcile.cli.stackfile import stack_paths
    from sage_reconcile.stack.report import render

    groups = [[path] for path in files or []]
    if overlays or not groups:
        base = groups.pop(0) if len(groups) == 1 else []
        groups.append(stack_paths(None, [*base, *(overlays or [])]))
    checked = [_check(group, tuple(sets or ()), portable) for group in groups]
    report = render(checked, format)
    if report:
        print(report)
    return 1 if any(one.faults for one in checked) else 0


def _check(paths: list[Path], sets: tuple[str, ...], portable: bool) -> "Checked":
    import os

    from sage_reconcile.errors import StackError
    from sage_reconcile.stack.load import load
    from sage_reconcile.stack.report import Checked

    shown = " + ".join(str(path) for path in paths)
    try:
        stack = load(paths, os.environ, sets, portable)
    except StackError as error:
        return Checked(shown, faults=error.faults)
    return Checked(shown, stack.name, len(stack.model.engines))
