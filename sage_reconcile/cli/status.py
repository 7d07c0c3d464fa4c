"""`sage status`."""

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from sage_reconcile.cli.stackfile import DEFAULTS, Json, load_stack
from sage_reconcile.converge import survey
from sage_reconcile.errors import StackError
from sage_reconcile.home import Home
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.observe.external import look_at_published
from sage_reconcile.observe.look import LocalEyes
from sage_reconcile.render.print import console, print_json
from sage_reconcile.render.progress import can_redraw
from sage_reconcile.render.status import status_data, status_view

Seen = tuple[ObservedState, dict[str, str], tuple[str, ...]]


def status(
    file: Annotated[Path | None, Parameter(help="Show drift from this stack file.")] = None,
    /,
    *,
    json: Json = False,
    watch: Annotated[
        bool, Parameter(name=["--watch", "-w"], negative="", help="Redraw until Ctrl-C.")
    ] = False,
    all: Annotated[bool, Parameter(negative="", help="Name engines of other SAGE_HOMEs, too.")] = False,
) -> int:
    """Show engines, health, GPU memory by owner, and drift from the stack file.

    Example: sage status
    """
    eyes = LocalEyes(Home.from_environ())
    path = file or next((Path(name) for name in DEFAULTS if Path(name).exists()), None)
    observed, drift, notes = asyncio.run(_look(eyes, path, must_load=file is not None))
    if json:
        print_json(status_data(observed))
        return 0
    out = console()
    if not watch:
        out.print(status_view(observed, drift, all, notes), soft_wrap=False)
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        _redraw(eyes, path, out, all)
    return 0


def _redraw(eyes: LocalEyes, path: Path | None, out: Console, all: bool) -> None:
    """Shows a new look every second, until Ctrl-C; where nothing can be redrawn, one below the other."""
    from rich.live import Live

    live = Live(console=out, screen=True) if can_redraw(out) else None
    with live or contextlib.nullcontext():
        while True:
            observed, drift, notes = asyncio.run(_look(eyes, path, must_load=False))
            view = status_view(observed, drift, all, notes)
            if live is not None:
                live.update(view, refresh=True)
            else:
                out.print(view, soft_wrap=False)
            time.sleep(1.0)


async def _look(eyes: LocalEyes, path: Path | None, must_load: bool) -> Seen:
    """A look, external engines included; for each replica what `sage apply` would do to it; known fixes."""
    observed, drift, notes = await _look_at(eyes, path, must_load)
    return replace(observed, external=await look_at_published(observed)), drift, notes


async def _look_at(eyes: LocalEyes, path: Path | None, must_load: bool) -> Seen:
    if path is None:
        return await eyes.look(), {}, ()
    from sage_reconcile.fixing import Source, known_fixes
    from sage_reconcile.stack.resolve import resolve

    try:
        stack = load_stack(path, None, None)
        found = await survey(resolve(stack), eyes)
    except StackError:
        if must_load:
            raise
        return await eyes.look(), {}, ()
    drift = {str(step.replica): f"{step.verdict}: {step.cause}" for step in found.plan.steps}
    drift |= {str(blocked.replica): f"blocked: {blocked.reason}" for blocked in found.plan.blocked}
    return found.observed, drift, known_fixes(found, Source(stack, (), eyes.home))
