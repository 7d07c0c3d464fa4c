"""An apply from beginning to end, as `sage apply`, `watch`, `stop`, `restart` and `rollback` do it."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_reconcile import history, journal
from sage_reconcile.apply.execute import Executor, Options, Progress
from sage_reconcile.converge import Host, Survey, carry_out
from sage_reconcile.home import Home
from sage_reconcile.model.actions import Outcome, Plan, Result, Step, Verdict
from sage_reconcile.render.plan_text import headline
from sage_reconcile.stack.file import StackFile


@dataclass(frozen=True, slots=True)
class Applied:
    """How it ended."""

    plan: Plan
    outcomes: tuple[Outcome, ...]

    @property
    def is_whole(self) -> bool:
        """Whether everything that the stack asks for is now so."""
        held = any(kept.verdict is Verdict.HOLD for kept in self.plan.kept)
        return not held and not self.plan.blocked and all(o.result is Result.DONE for o in self.outcomes)

    @property
    def summary(self) -> str:
        counts = {result: sum(o.result is result for o in self.outcomes) for result in Result}
        words = [f"{count} {result}" for result, count in counts.items() if count]
        words += [f"{len(self.plan.blocked)} blocked"] if self.plan.blocked else []
        return ", ".join(words) or "nothing to do"


def apply_survey(survey: Survey, host: Host, progress: Progress, options: Options) -> Applied:
    """Executes the plan; the first Ctrl-C or SIGTERM starts no new step, see Executor.cancel."""
    return asyncio.run(_apply(survey, host, progress, options))


async def _apply(survey: Survey, host: Host, progress: Progress, options: Options) -> Applied:
    executors: list[Executor] = []
    noted = Noted(host.home, survey.desired.stack, progress)
    with _interruptible(executors):
        outcomes = await carry_out(survey, host, noted, options, executors)
    return Applied(survey.plan, outcomes)


@contextlib.contextmanager
def _interruptible(executors: list[Executor]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM)

    def cancel() -> None:
        for executor in executors:
            executor.cancel()

    for number in caught:
        loop.add_signal_handler(number, cancel)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


class Noted:
    """Writes what happens into the journal on its way to the progress display."""

    def __init__(self, home: Home, stack: str, progress: Progress) -> None:
        self._home = home
        self._stack = stack
        self._progress = progress

    def started(self, step: Step) -> None:
        journal.append(self._home, f"{step.verdict} begins", str(step.replica), step.cause)
        self._progress.started(step)

    def acting(self, step: Step, doing: str, launch: Any) -> None:
        self._progress.acting(step, doing, launch)

    def ended(self, outcome: Outcome) -> None:
        step = outcome.step
        kind = f"{step.verdict} {outcome.result}"
        # Why it was begun stands at its beginning: beside "done" it would read like a failure.
        journal.append(self._home, kind, str(step.replica), outcome.reason or f"took {outcome.seconds:.1f} s")
        self._progress.ended(outcome)


def remember(home: Home, stack: StackFile, applied: Applied, note: str = "") -> None:
    """Puts the stack and its outcome into the history, unless nothing changed since the last entry."""
    digest = history.digest_of(stack.document)
    known = history.entries(home, stack.name)
    result = "done" if applied.is_whole else "incomplete"
    if known and not applied.outcomes and known[-1].digest == digest and known[-1].result == result:
        return
    sources = [path for path, _ in stack.sources]
    commit = next((c for path in sources if (c := history.commit_of(Path(path)))), "")
    entry = history.Entry(
        number=0,
        at=time.time(),
        stack=stack.name,
        digest=digest,
        commit=commit,
        result=result,
        summary=applied.summary if applied.outcomes else headline(applied.plan),
        base=str(stack.base),
        document=stack.document,
        note=note,
    )
    history.record(home, entry)
