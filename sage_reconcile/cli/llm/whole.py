"""A stack that is applied whole or not at all, as presets are."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from sage_reconcile.adopted import as_desired
from sage_reconcile.apply.execute import Options
from sage_reconcile.applying import Applied, remember
from sage_reconcile.cli.apply import confirm, perform, report
from sage_reconcile.cli.stackfile import load_stack
from sage_reconcile.converge import Host, Survey, local_host, plan_for, survey, with_host_notes
from sage_reconcile.errors import BlockedError
from sage_reconcile.home import Home
from sage_reconcile.lock import applying
from sage_reconcile.model.actions import Result, Verdict
from sage_reconcile.model.desired import DesiredEngine, DesiredState, PlacementSpec, ReplicaId
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.plan.policy import Policy
from sage_reconcile.render.plan_text import headline
from sage_reconcile.render.print import print_plan
from sage_reconcile.stack.resolve import resolve


def apply_whole(path: Path, options: Options, yes: bool, dry_run: bool) -> int:
    """As `sage apply`; a failure takes back what was done, if `options.rollback`. The exit status.

    Raises BlockedError where a part of it cannot be done: then nothing is.
    """
    home = Home.from_environ()
    host = local_host(home)
    stack = load_stack(path, None, None)
    desired = resolve(stack)

    def look() -> Survey:
        return with_host_notes(asyncio.run(survey(desired, host.eyes)), home)

    with applying(home, say) as turn:
        found = look()
        if dry_run:
            print_plan(found.plan, "text")
            return 1 if found.plan.blocked else 0
        if found.plan.blocked and options.rollback:
            print_plan(found.plan, "text")
            raise BlockedError(f"{headline(found.plan)[:-1]}; nothing was done: see above what is in the way")
        agreed = confirm(found, look, turn, yes)
        if agreed is None:
            return 1
        before = as_it_runs(desired.stack, agreed.observed)
        applied = perform(agreed, host, options)
        status = report(applied)
        if is_failed(applied) and options.rollback:
            take_back(before, applied, host, options)
        else:
            remember(home, stack, applied)
    return status


def say(text: str) -> None:
    print(text, file=sys.stderr)


def is_failed(applied: Applied) -> bool:
    return any(outcome.result is Result.FAILED for outcome in applied.outcomes)


def as_it_runs(stack: str, observed: ObservedState) -> DesiredState:
    """What runs of a stack, to come back to: on the ports where it runs, for a file may have pinned them."""
    desired = as_desired(stack, observed)
    ports = {one.replica: one.mark.placement.port for one in observed.launches if one.replica.stack == stack}

    def placed(engine: DesiredEngine) -> DesiredEngine:
        own = [ports.get(ReplicaId(stack, engine.name, number)) for number in range(engine.replicas)]
        first = own[0] or 0
        is_row = first and own == list(range(first, first + engine.replicas))
        return replace(engine, placement=PlacementSpec(port=first)) if is_row else engine

    return replace(desired, engines=tuple(map(placed, desired.engines)))


def take_back(before: DesiredState, applied: Applied, host: Host, options: Options) -> None:
    """Makes the engines that the plan was about what they were `before`, and publishes their routes."""
    names = frozenset(step.replica.engine for step in applied.plan.steps)
    observed = asyncio.run(host.eyes.look(before))
    back = plan_for(before, observed, Policy(targets=names, stop_cause="rollback"))
    if back.plan.has_changes:
        say("rolling back what was started along with it")
    for what in (
        *(kept.reason for kept in back.plan.kept if kept.verdict is Verdict.HOLD),
        *back.plan.blocked,
    ):
        say(f"cannot roll back: {getattr(what, 'reason', what)}; see `sage status`")
    perform(back, host, options)  # publishes routes without the failed one, at least
