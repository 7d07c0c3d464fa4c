"""`sage plan`."""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sage_reconcile.cli.stackfile import File, Overlays, Sets, Targets, known_targets, load_stack
from sage_reconcile.converge import plan_for, survey, with_host_notes
from sage_reconcile.fixing import Source, with_known_fixes
from sage_reconcile.home import Home
from sage_reconcile.model.actions import Verdict
from sage_reconcile.observe.look import LocalEyes
from sage_reconcile.plan import explanation
from sage_reconcile.plan.policy import Policy
from sage_reconcile.render.print import print_plan
from sage_reconcile.stack.resolve import resolve


def plan(  # noqa: PLR0913 - one parameter per option
    file: File = None,
    /,
    *,
    overlays: Overlays = None,
    sets: Sets = None,
    target: Targets = None,
    out: Annotated[
        Path | None, Parameter(name=["--out", "-o"], help="Store the plan for `sage apply`.")
    ] = None,
    detailed_exitcode: Annotated[
        bool,
        Parameter(negative="", help="Exit 0 without changes, 1 on error, 2 with changes, 3 when blocked."),
    ] = False,
    format: Annotated[Literal["text", "json", "markdown"], Parameter(help="How to print it.")] = "text",
    explain: Annotated[
        str | None,
        Parameter(help="Also show this engine's memory part by part, and GPU by GPU why it goes there."),
    ] = None,
    inventory: Annotated[
        Path | None, Parameter(help="Plan against a described fleet instead of this host: needs no GPU.")
    ] = None,
) -> int:
    """Show what `sage apply` would do, and why. Changes nothing.

    Example: sage plan sage.yaml --detailed-exitcode
    """

    stack = load_stack(file, overlays, sets, portable=inventory is not None)
    desired = resolve(stack)
    names = [engine.name for engine in desired.engines]
    policy = Policy(targets=known_targets(target, names))
    known_targets([explain] if explain else None, names)
    home = Home.from_environ()
    if inventory:
        from sage_reconcile.observe.inventory import described
        from sage_reconcile.observe.modelfiles import ModelReader

        models = ModelReader(home, os.environ).read(engine.launch for engine in desired.engines)
        found = plan_for(desired, replace(described(inventory), models=models), policy)
    else:
        found = with_host_notes(asyncio.run(survey(desired, LocalEyes(home), policy)), home)
        found = with_known_fixes(found, Source(stack, tuple(sets or ()), home))
    engine = desired.engine(explain) if explain else None
    print_plan(
        found.plan, format, explanation.explain(engine, found.observed, found.plan) if engine else None
    )
    if out is not None:
        from sage_reconcile import planfile

        planfile.write(out, stack, found, target or ())
        print(f"stored: sage apply {out}", file=sys.stderr)
    held = any(kept.verdict is Verdict.HOLD for kept in found.plan.kept)
    if not detailed_exitcode:
        return 1 if found.plan.blocked else 0
    return 3 if found.plan.blocked or held else 2 if found.plan.has_changes else 0
