"""`sage watch`."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from sage_reconcile import journal, leases
from sage_reconcile.apply.execute import Executor, Options
from sage_reconcile.applying import Applied, Noted, remember
from sage_reconcile.bell import Bell
from sage_reconcile.cli.stackfile import File, Overlays, Sets, stack_paths
from sage_reconcile.converge import carry_out, local_host, plan_for
from sage_reconcile.crashloops import CrashLoops
from sage_reconcile.fixing import Source
from sage_reconcile.home import Home
from sage_reconcile.lock import LockNotWanted, applying
from sage_reconcile.model.actions import Outcome, Plan, Result, Verdict
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.observe.demand import Asked, who_waits
from sage_reconcile.plan.demand import due_in
from sage_reconcile.plan.policy import Policy
from sage_reconcile.render.plan_text import plan_lines
from sage_reconcile.render.print import console
from sage_reconcile.render.progress import ApplyProgress
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve
from sage_reconcile.supervisor import tree
from sage_reconcile.watch import PassResult, Watcher
from sage_reconcile.watching import Note, announced, left_behind

LOADS = frozenset({Verdict.START, Verdict.WAKE, Verdict.REPLACE, Verdict.AWAIT})


def watch(
    file: File = None,
    /,
    *,
    overlays: Overlays = None,
    sets: Sets = None,
    interval: Annotated[
        float,
        Parameter(
            validator=validators.Number(gt=0), help="Seconds between two passes when nothing seems to happen."
        ),
    ] = 10.0,
    once: Annotated[bool, Parameter(negative="", help="Make one pass and exit.")] = False,
) -> int:
    """Apply on every save and whenever reality drifts, until SIGTERM or Ctrl-C. Engines outlive the watcher.

    Example: sage watch sage.yaml
    """
    paths = stack_paths(file, overlays)
    home = Home.from_environ().claim()
    killed = left_behind(home, paths)
    with announced(home, paths) as note:
        work = HostWork(home, paths, sets or (), note)
        for pid in killed:
            work.say(f"the watcher before this one (process {pid}) was killed; the engines went on")
        return asyncio.run(_watch(paths, work, interval, once))


async def _watch(paths: Sequence[Path], work: "HostWork", interval: float, once: bool) -> int:
    watcher = Watcher(paths, work, max(interval, 0.1))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, watcher)
    work.say(f"watching {', '.join(str(path) for path in paths)}")
    notices = asyncio.create_task(_notices(watcher))
    work.bell = Bell(work.home, watcher.nudge)
    try:
        return await watcher.run(once)
    finally:
        work.bell.close()
        notices.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await notices
        work.say("the watcher ends; the engines stay" if not once else "done")


def _stop(watcher: Watcher) -> None:
    watcher.stop.set()
    watcher.nudge()


async def _notices(watcher: Watcher) -> None:
    """Wakes the watcher when the kernel says that something changed beside a watched file.

    Where there are no notifications to be had, its own polling by stat is enough.
    """
    from watchfiles import awatch

    folders = {path.parent for path in watcher.watched()}
    with contextlib.suppress(OSError, RuntimeError):
        async for _ in awatch(*folders, recursive=False, step=50, debounce=100, stop_event=watcher.stop):
            watcher.nudge()


class HostWork:
    """The watcher's work on this host."""

    def __init__(self, home: Home, paths: Sequence[Path], sets: Sequence[str], note: Note) -> None:
        self._home = home
        self._note = note
        self._host = local_host(home)
        self._paths = list(paths)
        self._sets = tuple(sets)
        self.home = home
        self.bell: Bell | None = None
        self._launches: tuple[tuple[int, str], ...] = ()
        self._stack = ""
        self._known: frozenset[Asked] = frozenset()
        self._changing: frozenset[str] = frozenset()
        self._told = ""
        self._loops = CrashLoops()

    def load(self) -> tuple[StackFile, DesiredState]:
        stack = load(self._paths, os.environ, self._sets)
        self._note.tell(stack.name)
        self._stack = stack.name
        if self.bell is not None:
            self.bell.listen(stack.name)
        return stack, resolve(stack)

    async def make_pass(
        self, stack: StackFile, desired: DesiredState, policy: Policy, interrupt: asyncio.Event
    ) -> PassResult:
        self._known = who_waits(self.home)  # who asked before the pass is no news during it
        # The lock is waited for in a thread: its holder may be another sage that loads an engine for minutes.
        # A stop or an edit does not wait for that.
        lock = applying(self._home, self.say, is_wanted=lambda: not interrupt.is_set())
        try:
            await asyncio.to_thread(lock.__enter__)
        except LockNotWanted:
            return PassResult(Plan(desired.stack))
        try:
            return await self._converge(stack, desired, policy, interrupt)
        finally:
            lock.__exit__(None, None, None)

    async def _converge(
        self, stack: StackFile, desired: DesiredState, policy: Policy, interrupt: asyncio.Event
    ) -> PassResult:
        begun = time.time()
        await asyncio.to_thread(leases.end_over, self.home, begun)
        self._known = who_waits(self.home)  # before the look, which then knows of them
        observed = await self._host.eyes.look(desired)
        for replica, reason in self._loops.note(observed, desired, stack.document, time.monotonic()):
            self.say(f"{replica.short}: {reason}")
        found = plan_for(desired, observed, replace(policy, hold=(*policy.hold, *self._loops.holds)))
        planned = time.time()
        self._tell(found.plan.has_changes, [text for _, text in plan_lines(found.plan)])
        changing = {step.replica for step in found.plan.steps}
        self._changing = frozenset(replica.engine for replica in changing)
        self._watch_pulse(found.observed, {str(replica) for replica in changing})
        out = console()
        executors: list[Executor] = []
        canceller = asyncio.create_task(_cancel_on(interrupt, executors))
        try:
            with ApplyProgress(out, self._host.hands.last_line, _stamp) as progress:
                noted = Noted(self._home, desired.stack, progress)
                outcomes = await carry_out(found, self._host, noted, Options(), executors)
        finally:
            canceller.cancel()
            self._changing = frozenset()
        self._tell_times(outcomes, (begun, planned, time.time()))
        applied = Applied(found.plan, outcomes)
        if found.plan.has_changes or found.plan.blocked:
            remember(self._home, stack, applied, note="watch")
        if outcomes:
            self._watch_pulse(await self._host.eyes.look(desired), set())
        for remedy in Source(stack, self._sets, self._home).of_outcomes(found, outcomes).remedies:
            self.say(f"{remedy.engine}: {remedy.short}")
        failed = tuple((o.step.replica, o.reason) for o in outcomes if o.result is Result.FAILED)
        return PassResult(found.plan, failed, due_in(desired, found.observed))

    def _tell_times(self, outcomes: tuple[Outcome, ...], times: tuple[float, float, float]) -> None:
        """Where the time went of those who waited for an engine that this pass has loaded."""
        begun, planned, ended = times
        loaded = {
            o.step.replica.engine for o in outcomes if o.result is Result.DONE and o.step.verdict in LOADS
        }
        asked = [since for stack, engine, since in self._known if stack == self._stack and engine in loaded]
        if asked:
            first = min(asked)
            self.say(
                f"whoever asked first waited {ended - first:.2f} s: {begun - first:.2f} until noticed, "
                f"{planned - begun:.2f} to look and plan, {ended - planned:.2f} to do it"
            )

    def _tell(self, has_changes: bool, lines: list[str]) -> None:
        """A plan with changes is always shown; what merely stays blocked or held is shown once.

        Of the first plan at least the headline is: silence would not tell whether anything was looked at.
        """
        text = "\n".join(lines)
        if has_changes or ("blocked" in lines[-1] and text != self._told):
            self.say(text)
        elif not self._told:
            self.say(lines[-1])
        self._told = text

    def _watch_pulse(self, observed: ObservedState, changing: set[str]) -> None:
        self._launches = tuple(
            (one.supervisor_pid, one.directory)
            for one in observed.launches
            if str(one.replica) not in changing
        )

    def pulse(self) -> dict[object, object]:
        """Which of the known supervisors live, when their records were last written, and what is leased."""
        now = time.time()
        beats: dict[object, object] = {
            (pid, folder): (tree.is_alive(pid), _written(folder)) for pid, folder in self._launches
        }
        beats["leases"] = [lease for lease in leases.read(self._home)[0] if lease.until > now]
        return beats

    def is_asked(self) -> bool:
        """What a plan under way changes is asked for in vain: whoever waits for that is known soon enough."""
        news = who_waits(self.home) - self._known
        return any(stack == self._stack and engine not in self._changing for stack, engine, _ in news)

    def say(self, text: str) -> None:
        stamp = _stamp()
        with contextlib.suppress(OSError):  # a log that cannot be written is no reason to stop watching
            print("\n".join(f"{stamp}{line}" if line else "" for line in text.splitlines()), flush=True)
        if not text.startswith("Stack "):
            journal.append(self._home, "watch", ",".join(path.name for path in self._paths), text)


def _stamp() -> str:
    """What every line of a watcher begins with."""
    return time.strftime("%H:%M:%S  ")


def _written(folder: str) -> int:
    try:
        return os.stat(f"{folder}/launch.json").st_mtime_ns
    except OSError:
        return 0


async def _cancel_on(interrupt: asyncio.Event, executors: list[Executor]) -> None:
    await interrupt.wait()
    while not executors:  # it may come before the plan is begun
        await asyncio.sleep(0.01)
    for executor in executors:
        executor.cancel()
