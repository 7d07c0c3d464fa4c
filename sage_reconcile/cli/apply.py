"""`sage apply`."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from sage_reconcile.apply.execute import Options
from sage_reconcile.applying import Applied, apply_survey, remember
from sage_reconcile.cli.stackfile import Json, Overlays, Sets, Targets, known_targets, load_stack
from sage_reconcile.converge import Host, Survey, local_host, survey, with_host_notes
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.lock import Turn, applying
from sage_reconcile.plan.facts import is_still
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

    def look() -> Survey:
        found = with_host_notes(asyncio.run(survey(desired, host.eyes, policy)), home)
        if stored is not None:
            planfile.check(stored, found)
        return found

    with applying(home, lambda text: print(text, file=sys.stderr)) as turn:
        found = look()
        if dry_run:
            print_plan(found.plan, "json" if json else "text")
            return 1 if found.plan.blocked else 0
        agreed = confirm(found, look, turn, yes or stored is not None, json)
        if agreed is None:
            return 1
        applied = perform(agreed, host, options, json)
        remember(home, stack, applied)
    return report(applied, json)


def _stored_stack(stored: dict[str, Any]) -> StackFile:
    from sage_reconcile.stack.load import from_document

    return from_document(stored["document"], Path(stored["base"]), stored["name"], os.environ)


def confirm(
    found: Survey, look: Callable[[], Survey], turn: Turn | None, yes: bool, as_json: bool = False
) -> Survey | None:
    """Shows the plan and asks where there is something to ask: what was agreed to, None where nothing was.

    Nobody waits for somebody who thinks: the lock is given up meanwhile. What another sage has done by then
    may make another plan, which is shown and asked for in turn.
    """
    while True:
        if not as_json:
            print_plan(found.plan, "text")
        if yes or not found.plan.has_changes:
            return found
        _require_terminal("apply")
        if turn is not None:
            turn.give_up()
        if _answer("Apply this plan? [y/N] ") not in ("y", "yes"):
            print("nothing was done", file=sys.stderr)
            return None
        if turn is not None:
            turn.take()
        now = look()
        if is_still(now.plan, found.plan):
            return now
        print("the plan is no longer the same; this is what would be done now:", file=sys.stderr)
        found = now


def perform(found: Survey, host: Host, options: Options, as_json: bool = False) -> Applied:
    """Executes the plan and shows how that goes."""
    out = console()
    if as_json:
        out = type(out)(stderr=True, soft_wrap=True, highlight=False)
    with ApplyProgress(out, host.hands.last_line) as progress:
        return apply_survey(found, host, progress, options)


def ask_yes(question: str) -> bool:
    """Whether the answer is yes. Raises PermanentError where there is nobody to ask."""
    _require_terminal("do it")
    return _answer(question) in ("y", "yes")


def _answer(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:  # Ctrl-D, or a terminal that is gone
        print(file=sys.stderr)
        return ""


def _require_terminal(what: str) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise PermanentError(f"there is no terminal to ask on: pass --yes to {what} without asking")


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
