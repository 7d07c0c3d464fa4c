"""`sage apply`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from sage_reconcile.apply.execute import Options
from sage_reconcile.applying import Applied, apply_survey
from sage_reconcile.cli.stackfile import Json, Overlays, Sets, Targets
from sage_reconcile.converge import Host, Survey
from sage_reconcile.errors import PermanentError
from sage_reconcile.lock import Turn
from sage_reconcile.model.actions import Result
from sage_reconcile.plan.facts import is_still
from sage_reconcile.render.plan_data import plan_data
from sage_reconcile.render.plan_text import headline
from sage_reconcile.render.print import console, print_plan
from sage_reconcile.render.progress import ApplyProgress

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
    accept_fixes: Annotated[
        bool,
        Parameter(
            negative="",
            help="Write the known fix of an engine that does not start into the stack file, and apply again.",
        ),
    ] = False,
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
    from sage_reconcile.cli.applyfixes import Files, Rounds

    stored = planfile.read(file) if file is not None and not overlays else None
    files = Files(file, tuple(overlays or ()), tuple(sets or ()), stored)
    options = Options(wait=not no_wait, timeout=timeout, rollback=not no_rollback)
    rounds = Rounds(files, tuple(target or ()), options, yes=yes, as_json=json)
    if dry_run:
        return rounds.show()
    return rounds.apply(accept_fixes)


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
        require_terminal("apply")
        if turn is not None:
            turn.give_up()
        if answer("Apply this plan? [y/N] ") not in ("y", "yes"):
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
    require_terminal("do it")
    return answer(question) in ("y", "yes")


def answer(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:  # Ctrl-D, or a terminal that is gone
        print(file=sys.stderr)
        return ""


def require_terminal(what: str) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise PermanentError(f"there is no terminal to ask on: pass --yes to {what} without asking")


def report(applied: Applied) -> int:
    """Prints the outcome; the exit status: 0 when everything is now as the stack asks, else 1."""
    if applied.outcomes:
        print(f"Applied: {applied.summary}.")
    elif applied.plan.blocked:
        print(f"error: {headline(applied.plan)}", file=sys.stderr)
    return 0 if applied.is_whole else 1


def applied_data(applied: Applied, fixes: dict[str, Any]) -> dict[str, Any]:
    """What `sage apply --json` prints; `fixes` maps an engine to what would mend it."""
    outcomes = [
        {
            "id": o.step.id,
            "result": str(o.result),
            "reason": o.reason,
            "seconds": round(o.seconds, 3),
            "rolled_back": o.rolled_back,
            "log": list(o.tail),
            "fix": fixes.get(o.step.replica.engine) if o.result is Result.FAILED else None,
        }
        for o in applied.outcomes
    ]
    return {"version": 1, "plan": plan_data(applied.plan), "outcomes": outcomes, "ok": applied.is_whole}
