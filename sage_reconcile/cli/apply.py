"""`sage apply`."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from sage_reconcile.apply.execute import Options
from sage_reconcile.applying import Applied, apply_survey, remember
from sage_reconcile.cli.stackfile import Json, Overlays, Sets, Targets, known_targets, load_stack
from sage_reconcile.converge import Host, Survey, local_host, survey, with_host_notes
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.lock import applying
from sage_reconcile.plan.policy import Policy
from sage_reconcile.render.plan_data import plan_data
from sage_reconcile.render.plan_text import headline
from sage_reconcile.render.print import console, print_json, print_plan
from sage_reconcile.render.progress import ApplyProgress
from sage_reconcile.stack.file import StackFile

Yes = Annotated[bool, Parameter(name=["--yes", "-y"], negative="", help="Do not ask.")]
NoWait = Annotated[bool, Parameter(negative="", help="Do not wait until started engines answer.")]
Timeout = Annotated[
    float | None,
    Parameter(validator=validators.Number(gt=0), help="Seconds that each engine gets to answer."),
]
NoRollback = Annotated[
    bool, Parameter(negative="", help="Leave it stopped when a replacement does not get ready.")
]


def apply(  # noqa: PLR0913 - one parameter per option
    file: Annotated[
        Path | None, Parameter(help="The stack file, or a plan stored by `sage plan -o`.")
    ] = None,
    /,
    *,
    overlays: Overlays = None,
    sets: Sets = None,
    target: Targets = None,
    yes: Yes = False,
    dry_run: Annotated[bool, Parameter(negative="", help="Only show the plan.")] = False,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    no_rollback: NoRollback = False,
    json: Json = False,
) -> int:
    """Make the running engines what the stack file says: plan, ask, execute.

    The first Ctrl-C begins no new step and leaves everything consistent.

    Example: sage apply sage.yaml --yes
    """
    from sage_reconcile import planfile
    from sage_reconcile.stack.resolve import resolve

    home = Home.from_environ()
    host = local_host(home)
    stored = planfile.read(file) if file is not None and not overlays else None
    if stored is not None:
        stack = _stored_stack(stored)
        target = stored["targets"] or None
    else:
        stack = load_stack(file, overlays, sets)
    desired = resolve(stack)
    policy = Policy(targets=known_targets(target, [engine.name for engine in desired.engines]))
    options = Options(wait=not no_wait, timeout=timeout, rollback=not no_rollback)
    with applying(home, lambda text: print(text, file=sys.stderr)):
        found = with_host_notes(asyncio.run(survey(desired, host.eyes, policy)), home)
        if stored is not None:
            planfile.check(stored, found)
        if dry_run:
            print_plan(found.plan, "json" if json else "text")
            return 1 if found.plan.blocked else 0
        applied = confirm_and_apply(found, host, options, yes or stored is not None, json)
        if applied is None:
            return 1
        remember(home, stack, applied)
    return report(applied, json)


def _stored_stack(stored: dict[str, Any]) -> StackFile:
    from sage_reconcile.stack.load import from_document

    return from_document(stored["document"], Path(stored["base"]), stored["name"], os.environ)


def confirm_and_apply(
    found: Survey, host: Host, options: Options, yes: bool, as_json: bool = False
) -> Applied | None:
    """Shows the plan, asks where there is something to ask, and executes it. None: the user said no."""
    if not as_json:
        print_plan(found.plan, "text")
    if found.plan.has_changes and not yes:
        _ask()
        if _answer("Apply this plan? [y/N] ") not in ("y", "yes"):
            print("nothing was done", file=sys.stderr)
            return None
    out = console()
    if as_json:
        out = type(out)(stderr=True, soft_wrap=True, highlight=False)
    with ApplyProgress(out, host.hands.last_line) as progress:
        return apply_survey(found, host, progress, options)


def _answer(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:  # Ctrl-D, or a terminal that is gone
        print(file=sys.stderr)
        return ""


def _ask() -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise PermanentError("there is no terminal to ask on: pass --yes to apply without asking")


def report(applied: Applied, as_json: bool = False) -> int:
    """Prints the outcome; the exit status: 0 when everything is now as the stack asks, else 1."""
    if as_json:
        outcomes = [
            {
                "id": o.step.id,
                "result": str(o.result),
                "reason": o.reason,
                "seconds": round(o.seconds, 3),
                "rolled_back": o.rolled_back,
                "log": list(o.tail),
            }
            for o in applied.outcomes
        ]
        print_json(
            {"version": 1, "plan": plan_data(applied.plan), "outcomes": outcomes, "ok": applied.is_whole}
        )
    elif applied.outcomes:
        print(f"Applied: {applied.summary}.")
    elif applied.plan.blocked:
        print(f"error: {headline(applied.plan)}", file=sys.stderr)
    return 0 if applied.is_whole else 1
