"""Edits of adhoc.yaml that are carried out: planned, written, applied, and taken back if a start fails.

As `sage llm engine` does it, but nobody is asked and nothing is printed: what would end something that runs
is refused unless it was asked for.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sage_reconcile import adhoc
from sage_reconcile.adopted import as_desired, as_it_runs
from sage_reconcile.apply.execute import Executor, Options, Progress
from sage_reconcile.apply.hands import Started
from sage_reconcile.applying import Applied, Noted, remember
from sage_reconcile.converge import Host, Survey, carry_out, plan_for, with_host_notes
from sage_reconcile.errors import BlockedError, PermanentError, ReconcileError, TransientError
from sage_reconcile.lock import LockNotWanted, applying
from sage_reconcile.model.actions import Outcome, Plan, Result, Step, Verdict
from sage_reconcile.model.observed import ObservedLaunch, ObservedState
from sage_reconcile.plan.policy import Policy
from sage_reconcile.stack.editing import with_engine, without_engine
from sage_reconcile.stack.resolve import resolve

Say = Callable[[str], None]

Fields = Mapping[str, Any]

TRIES = 5

ENDING = frozenset({Verdict.REPLACE, Verdict.STOP})
"""What would end something that runs."""


class ConflictError(BlockedError):
    """What was asked for contradicts what is there: another engine's name, another stack's engine."""


@dataclass(slots=True)
class Work:
    """How a piece of work is followed and ended: `say` is told what happens, `cancel` begins nothing new."""

    say: Say = lambda text: None
    executors: list[Executor] = field(default_factory=list)
    is_cancelled: bool = False

    def cancel(self) -> None:
        """Engines that load go on by themselves, a replacement is brought to its end."""
        self.is_cancelled = True
        for executor in self.executors:
            executor.cancel()


@dataclass(frozen=True, slots=True)
class Start:
    """A start of the engine `name`. `decide` gives the fields by what the host is like."""

    name: str
    decide: Callable[[ObservedState], Fields]
    may_replace: bool = False
    options: Options = Options()  # noqa: RUF009 - frozen


async def start(host: Host, wanted: Start, work: Work) -> Applied:
    """Starts, or changes, one engine. Raises ReconcileError where it does not run then: the file is as it was
    before, and whatever was started along with it is ended.
    """
    async with turn(host, work):
        fields = wanted.decide(await host.eyes.look())
        edit = partial(_laid, {"name": wanted.name, **fields})
        draft, found = await _planned(host, edit, frozenset({wanted.name}))
        if found.plan.blocked:
            raise BlockedError(f"nothing was done: {found.plan.blocked[0].reason}")
        if not wanted.may_replace and any(step.verdict in ENDING for step in found.plan.steps):
            raise ConflictError(
                f"nothing was done: this would end {wanted.name} as it runs now and start it anew; "
                "say that it may be replaced, or choose another name"
            )
        before = as_it_runs(adhoc.STACK, found.observed)
        adhoc.write(draft)
        applied = await _perform(host, found, wanted.options, work)
        failed = [outcome for outcome in applied.outcomes if outcome.result is Result.FAILED]
        if not failed:
            remember(host.home, draft.stack, applied)
            return applied
        back = plan_for(
            before,
            await host.eyes.look(before),
            Policy(targets=frozenset({wanted.name}), stop_cause="rollback"),
        )
        await _perform(host, back, wanted.options, Work(work.say))
        is_back = adhoc.restore(draft)
        note = "is as it was before" if is_back else "was edited meanwhile and stays as it is now"
        raise PermanentError(f"{reason_of(failed[0])}; {draft.path} {note}")


async def stop(host: Host, name: str, drain: bool, work: Work) -> Applied:
    """Stops every process of an engine and says `state: stopped` in its entry. Without `drain` it waits
    neither for requests in flight nor for another sage."""
    async with turn(host, work) if drain else _nobody():
        observed = await host.eyes.look()
        # Before it ends: whoever is killed in between has said what was wanted.
        fault = _say_stopped(host, name)
        found = stop_plan(adhoc.STACK, frozenset({name}), not drain, observed)
        applied = _required(await _perform(host, found, Options(), work))
        if fault:
            raise PermanentError(f"{name} is stopped, but its file stays as it is: {fault}")
        return applied


async def forget(host: Host, choose: Callable[[ObservedState], frozenset[str]], work: Work) -> Applied:
    """Takes entries out of adhoc.yaml; what runs of them ends, and so do their routes. `choose` is asked
    under the lock, so that nothing is taken for stopped that somebody has just started."""
    async with turn(host, work):
        names = choose(await host.eyes.look())
        if not names:
            return Applied(Plan(adhoc.STACK), ())
        draft, found = await _planned(host, partial(_without, names), names)
        adhoc.write(draft)
        applied = await _perform(host, found, Options(), work)
        remember(host.home, draft.stack, applied)
        return _required(applied)


def stopped_entries(host: Host, observed: ObservedState) -> frozenset[str]:
    """The entries that say `state: stopped` and of which nothing runs."""
    alive = [one.replica for one in observed.launches] + [one.replica for one in observed.orphans]
    running = {replica.engine for replica in alive if replica.stack == adhoc.STACK}
    entries = adhoc.entries(host.home).items()
    return frozenset(name for name, one in entries if one.get("state") == "stopped") - running


def stop_plan(stack: str, wanted: frozenset[str], force: bool, observed: ObservedState) -> Survey:
    """Stops the engines `wanted` of a stack, whatever its file says; `force` waits for no request."""
    desired = as_desired(stack, observed, stopped=wanted)
    if force:
        own = tuple(replace(e, live=replace(e.live, drain=0.0)) for e in desired.engines)
        desired = replace(desired, engines=own)
    return plan_for(desired, observed, Policy(targets=wanted, stop_cause="stop asked for"))


def reason_of(outcome: Outcome) -> str:
    """Why a step failed, with the last line of the engine's log."""
    tail = next((line for line in reversed(outcome.tail) if line.strip()), "")
    said = f" (its last words: {tail.strip()[:300]})" if tail else ""
    engine = outcome.step.replica.engine
    return f"{outcome.step.replica.short}: {outcome.reason}{said}; `sage llm logs {engine}` tells more"


@contextlib.asynccontextmanager
async def turn(host: Host, work: Work) -> AsyncIterator[None]:
    """Holds the lock of whoever applies. It is waited for in a thread: its holder may load an engine for
    minutes."""
    lock = applying(host.home, work.say, is_wanted=lambda: not work.is_cancelled)
    try:
        await asyncio.to_thread(lock.__enter__)
    except LockNotWanted:
        raise TransientError("interrupted before it began; nothing was done") from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextlib.asynccontextmanager
async def _nobody() -> AsyncIterator[None]:
    """An emergency does not wait for somebody else's engine to load."""
    yield


async def _planned(host: Host, edit: adhoc.Edit, names: frozenset[str]) -> tuple[adhoc.Draft, Survey]:
    draft = adhoc.draft(host.home, edit)
    desired = resolve(draft.stack)
    observed = await host.eyes.look(desired)
    found = plan_for(desired, observed, Policy(targets=names))
    return draft, with_host_notes(found, host.home)


async def _perform(host: Host, found: Survey, options: Options, work: Work) -> Applied:
    progress = Noted(host.home, found.desired.stack, Told(work.say))
    if work.is_cancelled:
        raise TransientError("interrupted before it began; nothing was done")
    outcomes = await carry_out(found, host, progress, options, work.executors)
    return Applied(found.plan, outcomes)


def _required(applied: Applied) -> Applied:
    failed = [outcome for outcome in applied.outcomes if outcome.result is Result.FAILED]
    if failed:
        raise PermanentError(f"{failed[0].step.replica.short}: {failed[0].reason}")
    return applied


def _say_stopped(host: Host, name: str) -> str:
    """Writes `state: stopped` into the entry. Why it cannot be written, or "": a file at fault must not keep
    anybody from stopping engines."""
    fault = ""
    for _ in range(TRIES):
        try:
            if name in adhoc.entries(host.home):
                edit = partial(_laid, {"name": name, "state": "stopped"})
                adhoc.write(adhoc.draft(host.home, edit))
            return ""
        except TransientError as error:
            fault = str(error)
        except (ReconcileError, OSError) as error:
            return str(error)
    return fault


def _laid(fields: Fields, text: str, path: str) -> str:
    return with_engine(text, path, fields)


def _without(names: frozenset[str], text: str, path: str) -> str:
    for name in sorted(names):
        text = without_engine(text, path, name)
    return text


class Told(Progress):
    """Progress as lines of text."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def started(self, step: Step) -> None:
        self._say(f"{step.verdict} {step.replica.short}: {step.cause}")

    def acting(self, step: Step, doing: str, launch: Started | ObservedLaunch | None) -> None:
        self._say(f"{step.replica.short}: {doing}")

    def ended(self, outcome: Outcome) -> None:
        reason = f": {outcome.reason}" if outcome.reason else ""
        self._say(f"{outcome.step.verdict} {outcome.step.replica.short} {outcome.result}{reason}")
