"""`sage stop` and `sage restart`: act on what runs, without a file."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from sage_reconcile.adopted import as_desired
from sage_reconcile.apply.execute import Options
from sage_reconcile.cli.apply import NoWait, Timeout, Yes, confirm, perform
from sage_reconcile.converge import Host, Survey, local_host, plan_for
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.lock import Turn, applying
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.plan.policy import Policy
from sage_reconcile.watching import watchers

Names = Annotated[list[str] | None, Parameter(help="Engines, as `sage status` names them.")]
All = Annotated[bool, Parameter(name="--all", negative="", help="Every engine of this SAGE_HOME.")]
Stack = Annotated[str | None, Parameter(help="Only engines of this stack.")]
Force = Annotated[
    bool, Parameter(negative="", help="Wait neither for requests in flight nor for another sage.")
]


def stop(
    engines: Names = None, /, *, all: All = False, stack: Stack = None, force: Force = False, yes: Yes = False
) -> int:
    """Stop engines now. The stack file is not touched: the next apply starts them again.

    Example: sage stop chat
    """
    home = Home.from_environ().claim()
    host = local_host(home)
    # In an emergency nobody waits for somebody else's engine to load: a stop is one signal per launch.
    hint = "; `sage stop --force` does not wait"
    lock = contextlib.nullcontext() if force else applying(home, lambda text: _say(text + hint))
    with lock as turn:
        observed = asyncio.run(host.eyes.look())
        chosen = _choose(observed, engines, all, stack)
        if not chosen:
            print("nothing runs")
        plans = [partial(stop_plan, name, wanted, force) for name, wanted in sorted(chosen.items())]
        status = _apply_all(plans, observed, turn, host, Options(), yes)
    _warn_of_watchers(home, chosen)
    return status


def stop_plan(stack: str, wanted: frozenset[str], force: bool, observed: ObservedState) -> Survey:
    """Stops the engines `wanted` of a stack, whatever its file says; `force` waits for no request."""
    desired = as_desired(stack, observed, stopped=wanted)
    if force:
        own = tuple(replace(e, live=replace(e.live, drain=0.0)) for e in desired.engines)
        desired = replace(desired, engines=own)
    return plan_for(desired, observed, Policy(targets=wanted, stop_cause="stop asked for"))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _warn_of_watchers(home: Home, stacks: Collection[str]) -> None:
    for watching in watchers(home):
        if watching.stack in stacks:
            _say(f"note: {watching} will start them again, unless the file says `state: stopped`")


def restart(
    engines: Names = None,
    /,
    *,
    all: All = False,
    stack: Stack = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    yes: Yes = False,
) -> int:
    """Give engines new processes, with the settings that they run with now.

    Example: sage restart chat
    """
    home = Home.from_environ()
    host = local_host(home)
    with applying(home, _say) as turn:
        observed = asyncio.run(host.eyes.look())
        chosen = _choose(observed, engines, all, stack)
        if not chosen:
            print("nothing runs")
        plans = [partial(_restart_plan, name, wanted) for name, wanted in sorted(chosen.items())]
        return _apply_all(plans, observed, turn, host, Options(not no_wait, timeout), yes)


def _restart_plan(stack: str, wanted: frozenset[str], observed: ObservedState) -> Survey:
    return plan_for(as_desired(stack, observed), observed, Policy(targets=wanted, restart=wanted))


def _apply_all(
    plans: Sequence[Callable[[ObservedState], Survey]],
    observed: ObservedState,
    turn: Turn | None,
    host: Host,
    options: Options,
    yes: bool,
) -> int:
    """One plan after the other; 0 when all went well."""
    status = 0
    for plan in plans:
        if turn is not None:
            turn.take()  # a "no" to the plan before has left it given up

        def look(plan: Callable[[ObservedState], Survey] = plan) -> Survey:
            return plan(asyncio.run(host.eyes.look()))

        agreed = confirm(plan(observed), look, turn, yes)
        if agreed is None or not perform(agreed, host, options).is_whole:
            status = 1
    return status


def _choose(
    observed: ObservedState, names: Sequence[str] | None, all: bool, stack: str | None
) -> dict[str, frozenset[str]]:
    """Engines to act on, by stack. Raises PermanentError for a name that does not run."""
    running: dict[str, set[str]] = {}
    for replica in [*(one.replica for one in observed.launches), *(one.replica for one in observed.orphans)]:
        if stack in (None, replica.stack):
            running.setdefault(replica.stack, set()).add(replica.engine)
    if all or (stack is not None and not names):
        return {name: frozenset(engines) for name, engines in running.items()}
    if not names:
        raise PermanentError("name the engines, or pass --all; `sage status` lists them")
    chosen: dict[str, set[str]] = {}
    for name in names:
        of_stack, _, engine = name.rpartition("/")
        found = [s for s, engines in running.items() if engine in engines and of_stack in ("", s)]
        if not found:
            _refuse_external(observed, of_stack or stack or "", engine)
            known = sorted(f"{s}/{e}" for s, engines in running.items() for e in engines)
            raise PermanentError(f"no engine named {name} runs; running: {', '.join(known) or 'none'}")
        if len(found) > 1:
            raise PermanentError(f"{name} runs in several stacks: {', '.join(sorted(found))}; pass --stack")
        chosen.setdefault(found[0], set()).add(engine)
    return {name: frozenset(engines) for name, engines in chosen.items()}


def _refuse_external(observed: ObservedState, stack: str, engine: str) -> None:
    """Raises PermanentError for an engine that is published and not sage's own."""
    for backend in observed.routing.backends if observed.routing else ():
        if backend.is_external and backend.engine == engine and stack in ("", backend.stack):
            raise PermanentError(
                f"{engine} is external ({backend.url}): sage does not own it; to end its routes, "
                "set state: stopped or remove it from the stack file, then apply"
            )
