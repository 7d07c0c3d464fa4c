"""`sage runtime`: versions of engine programs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

from sage_reconcile.cli.stackfile import Json, Overlays

if TYPE_CHECKING:
    from sage_reconcile.runtimes.build import Wanted
    from sage_reconcile.runtimes.listing import Environment

app = cyclopts.App(
    name="runtime",
    help="Install, list and remove versions of engine programs.\n\nExample: sage runtime install vllm",
)

Names = Annotated[
    list[str] | None,
    cyclopts.Parameter(negative="", help="Names in `runtimes`, or kinds; all when left out."),
]


@app.command
def install(names: Names = None, /, *, files: Overlays = None) -> int:
    """Build the environments of the versions that the stack file pins, with uv. What is there is left alone.

    The engines that run go on by what they were started with: `sage apply` replaces them.

    Example: sage runtime install vllm -f sage.yaml
    """
    from sage_reconcile.home import Home
    from sage_reconcile.runtimes.build import build

    home = Home.from_environ()
    for wanted in dict(_named(_pinned(files), names)).values():
        is_new = build(home, wanted, _tell)
        print(
            f"{wanted}: {'installed' if is_new else 'is installed'}: {home.runtimes / wanted.folder}",
            flush=True,
        )
    return 0


@app.command(name="list")
def list_(*, files: Overlays = None, json: Json = False) -> int:
    """List the environments in SAGE_HOME: what they are, their size, and which engines run by them.

    Example: sage runtime list
    """
    from rich.table import Table

    from sage_reconcile.render.folding import Folding
    from sage_reconcile.render.print import console, print_json

    found = _environments(files)
    if json:
        print_json([asdict(one) for one in found])
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("NAME", "RUNTIME", "VERSION", "SIZE", "USED BY", "STACK"):
        table.add_column(name, no_wrap=True, justify="right" if name == "SIZE" else "left")
    for one in found:
        table.add_row(
            f"{one.folder} -> {one.target}" if one.target else one.folder,
            one.runtime,
            one.version or "-",
            "not installed" if one.size is None else f"{one.size / 2**20:,.0f} MiB",
            ", ".join(one.used_by) or "-",
            ", ".join(one.wanted_by) or "-",
        )
    console().print(
        Folding(table) if found else "no environment is there: `sage runtime install` builds them"
    )
    return 0


@app.command
def remove(folders: list[str], /) -> int:
    """Remove environments, by their names in `sage runtime list`; not one that an engine runs by.

    A version that is removed cannot be rolled back to without installing it again.

    Example: sage runtime remove vllm-0.23.0-1f0c6b2e
    """
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.home import Home
    from sage_reconcile.runtimes.build import remove as remove_folder

    home = Home.from_environ().claim()
    known = {one.folder: one for one in _environments(None, looks_at_stack=False)}
    for folder in folders:
        one = known.get(folder)
        if one is None:
            raise PermanentError(f"there is no {folder}; there are: {', '.join(known) or 'none'}")
        if not one.version:
            raise PermanentError(f"{folder} was not made by sage: remove {home.runtimes / folder} yourself")
        if one.used_by:
            raise PermanentError(f"{', '.join(one.used_by)} runs by {folder}: stop or change it first")
        remove_folder(home, folder, _tell)
        print(f"{folder}: removed")
    return 0


def _pinned(files: list[Path] | None) -> list[tuple[str, "Wanted"]]:
    """The versions that the stack pins, by the name of the runtime."""
    from sage_reconcile.cli.stackfile import load_stack
    from sage_reconcile.runtimes.build import Wanted
    from sage_reconcile.stack.select import program_of

    runtimes = load_stack(None, files, None, portable=True).model.runtimes
    return [
        (name, Wanted(runtime.kind, program))
        for name, runtime in sorted(runtimes.items())
        if (program := program_of(runtime)) is not None
    ]


def _named(pinned: list[tuple[str, "Wanted"]], names: list[str] | None) -> list[tuple[str, "Wanted"]]:
    """Those that are meant. Raises PermanentError for a name that pins nothing, and where there are none."""
    from sage_reconcile.errors import PermanentError

    there = sorted({name for name, _ in pinned} | {wanted.runtime for _, wanted in pinned})
    for name in names or ():
        if name not in there:
            hint = f"there are: {', '.join(there)}" if there else 'write runtimes: {vllm: "VERSION"}'
            raise PermanentError(f"the stack file pins no version of {name}; {hint}")
    if not pinned:
        raise PermanentError('the stack file pins no version: write runtimes: {vllm: "VERSION"}')
    return [(name, one) for name, one in pinned if not names or name in names or one.runtime in names]


def _environments(files: list[Path] | None, looks_at_stack: bool = True) -> tuple["Environment", ...]:
    import asyncio

    from sage_reconcile.cli.stackfile import DEFAULTS
    from sage_reconcile.home import Home
    from sage_reconcile.observe.look import LocalEyes
    from sage_reconcile.runtimes.listing import environments

    home = Home.from_environ()
    launches = asyncio.run(LocalEyes(home).look()).launches
    has_stack = files or any(Path(name).exists() for name in DEFAULTS)
    wanted = _pinned(files) if looks_at_stack and has_stack else []
    return environments(home, launches, wanted)


def _tell(text: str) -> None:
    import sys

    print(text, file=sys.stderr)
