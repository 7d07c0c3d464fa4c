"""Stopping engines: their processes by the reconciler, then what adhoc.yaml says of them."""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

from sage_reconcile import adhoc
from sage_reconcile.apply.execute import Options
from sage_reconcile.cli.apply import perform
from sage_reconcile.cli.llm.whole import say
from sage_reconcile.cli.stop import stop_plan
from sage_reconcile.converge import local_host
from sage_reconcile.errors import PermanentError, ReconcileError, TransientError
from sage_reconcile.home import Home
from sage_reconcile.lock import applying
from sage_reconcile.model.desired import ReplicaId
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.render.print import print_plan
from sage_reconcile.stack.editing import with_engine, without_engine
from sage_reconcile.stack.problems import did_you_mean

TRIES = 5


def stop_engines(ids: Sequence[str] | None, force: bool = False, remove: bool = False) -> int:
    """Stops engines of adhoc.yaml, all for None, and says so in the file; the exit status.

    Raises PermanentError for an engine that is not of this file.
    """
    home = Home.from_environ().claim()
    host = local_host(home)
    hint = "; `sage llm engine stop --force` does not wait"
    lock = contextlib.nullcontext() if force else applying(home, lambda text: say(text + hint))
    with lock:
        observed = asyncio.run(host.eyes.look())
        names = _chosen(home, observed, ids)
        fault = _say_so(home, names, remove)
        if fault:
            say(f"note: the file stays as it is: {fault}")
        found = stop_plan(adhoc.STACK, names, force, observed)
        if not found.plan.has_changes:
            print("nothing runs" if ids is None else f"{', '.join(sorted(names))}: does not run")
            return 1 if fault else 0
        print_plan(found.plan, "text")
        return 0 if perform(found, host, Options()).is_whole and not fault else 1


def _say_so(home: Home, names: frozenset[str], remove: bool) -> str:
    """Before they end: whoever is killed in between has said what was wanted. Why the file cannot say it, or
    "": a file at fault must not keep anybody from stopping engines."""
    fault = ""
    for _ in range(TRIES):
        try:
            known = names & adhoc.entries(home).keys()
            if known:
                adhoc.write(adhoc.draft(home, partial(_without, known, remove)))
            return ""
        except TransientError as error:
            fault = str(error)
        except (ReconcileError, OSError) as error:
            return str(error)
    return fault


def _without(names: frozenset[str], remove: bool, text: str, path: str) -> str:
    for name in sorted(names):
        if remove:
            text = without_engine(text, path, name)
        else:
            text = with_engine(text, path, {"name": name, "state": "stopped"})
    return text


def _chosen(home: Home, observed: ObservedState, ids: Sequence[str] | None) -> frozenset[str]:
    known = set(adhoc.entries_or_fault(home)[0])
    running = {one.replica for one in observed.launches} | {one.replica for one in observed.orphans}
    own = known | {replica.engine for replica in running if replica.stack == adhoc.STACK}
    if ids is None:
        return frozenset(own)
    return frozenset(_engine(word, own, running) for word in ids)


def _engine(word: str, own: set[str], running: set[ReplicaId]) -> str:
    """The engine that an ID names: its name, with stack, replica or launch as `engine list` shows it."""
    stack, _, rest = word.partition("@")[0].rpartition("/")
    name = rest.partition("#")[0]
    if name in own and stack in ("", adhoc.STACK):
        return name
    others = sorted({one.stack for one in running if one.engine == name and stack in ("", one.stack)})
    if others:
        raise PermanentError(
            f"{name} is of stack {others[0]}, not of adhoc.yaml: `sage stop {others[0]}/{name}`, "
            "or edit its file"
        )
    hint = did_you_mean(name, own) or f"there are: {', '.join(sorted(own)) or 'none'}"
    raise PermanentError(f"no engine named {word}; {hint}; `sage llm engine list` lists them")
