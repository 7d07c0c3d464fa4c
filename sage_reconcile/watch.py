"""The level-triggered loop: on every change of a file, and at every interval, one pass over everything.

A wake-up carries no news: each pass reads the file and the host again, so a lost event costs one interval.
"""

import asyncio
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sage_reconcile.clock import Clock, SystemClock
from sage_reconcile.errors import ReconcileError, StackError
from sage_reconcile.model.actions import Plan
from sage_reconcile.model.desired import DesiredState, ReplicaId
from sage_reconcile.plan.policy import Policy
from sage_reconcile.stack.file import StackFile

TICK = 0.25
"""Seconds between two looks at the files' stat and at the pulse of the engines."""

DEBOUNCE = 0.15
"""Seconds without a further change before a file is read: editors write in several steps."""

SETTLE = 1.0
"""Seconds after which a pass that changed something is followed by another look."""

BACKOFF = 2.0
BACKOFF_MAX = 300.0


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass did. `failed` are the replicas that did not become what the file asks; `due` is when time
    alone will ask for another pass, in seconds from now."""

    plan: Plan
    failed: tuple[tuple[ReplicaId, str], ...] = ()
    due: float | None = None


class Work(Protocol):
    """What a watcher calls."""

    def load(self) -> tuple[StackFile, DesiredState]:
        """Reads the files. Raises ReconcileError with everything that is wrong with them."""
        ...

    async def make_pass(
        self, stack: StackFile, desired: DesiredState, policy: Policy, interrupt: asyncio.Event
    ) -> PassResult:
        """Looks, plans and executes. When `interrupt` is set it begins nothing new and returns soon:
        engines that are loading go on by themselves, a replacement is brought to its end."""
        ...

    def pulse(self) -> Mapping[object, object]:
        """A cheap value for each engine that is known and left alone: it changes when something happens."""
        ...

    def is_asked(self) -> bool:
        """Whether somebody waits for an engine on demand of whom the last look did not know."""
        ...

    def say(self, text: str) -> None:
        """Tells the user."""
        ...


@dataclass(slots=True)
class _Trouble:
    """How often in a row a replica failed, and when it may be tried again."""

    attempts: int
    until: float


@dataclass(slots=True)
class Backoff:
    """Which replicas wait: exponentially longer, with full jitter over the second half."""

    clock: Clock
    jitter: Callable[[], float] = random.random
    _trouble: dict[ReplicaId, _Trouble] = field(default_factory=dict)
    _held: frozenset[ReplicaId] = frozenset()

    def note(self, result: PassResult, held: Iterable[tuple[ReplicaId, str]] = ()) -> None:
        """Counts the failures of a pass, in which `held` waited; all others are forgotten."""
        failed = dict(result.failed)
        self._held = frozenset(replica for replica, _ in held)
        for replica in self._trouble.keys() - failed.keys() - self._held:
            del self._trouble[replica]
        for replica in failed:
            attempts = self._trouble[replica].attempts + 1 if replica in self._trouble else 1
            delay = min(BACKOFF * 2 ** (attempts - 1), BACKOFF_MAX) * (0.5 + self.jitter() / 2)
            self._trouble[replica] = _Trouble(attempts, self.clock.now() + delay)

    def holds(self) -> tuple[tuple[ReplicaId, str], ...]:
        """The replicas that wait, with the reason."""
        now = self.clock.now()
        return tuple(
            (replica, f"failed {times(t.attempts)}; next attempt in {t.until - now:.0f} s")
            for replica, t in sorted(self._trouble.items())
            if t.until > now
        )

    def delays(self) -> list[float]:
        """Seconds until each waiting replica may be tried again.

        One whose time has come is due at once if the last pass held it; else that pass was its chance.
        """
        now = self.clock.now()
        return [
            max(0.1, t.until - now)
            for replica, t in self._trouble.items()
            if t.until > now or replica in self._held
        ]

    def forget(self) -> None:
        """A new file is a new chance."""
        self._trouble.clear()


def times(count: int) -> str:
    return f"{count} time{'s' if count > 1 else ''}"


def signature(path: Path) -> tuple[int, int, int] | None:
    """What a file looks like from outside: enough to see that it was changed, replaced or removed.

    Asked for by stat at every tick beside the notifications of the kernel, which do not reach everywhere
    (bind mounts, network file systems, a directory that was replaced).
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Watcher:
    """Keeps one stack as its file says until `stop` is set. It owns no engine: they outlive it."""

    def __init__(
        self, paths: Sequence[Path], work: Work, interval: float, clock: Clock | None = None
    ) -> None:
        self._paths = [path.absolute() for path in paths]
        self._work = work
        self._interval = interval
        self._clock = clock or SystemClock()
        self._backoff = Backoff(self._clock)
        self._good: tuple[StackFile, DesiredState] | None = None
        self._complaint = ""
        self._steps: tuple[str, ...] = ()
        self._is_settled = True
        self._is_fresh = True
        self._due: float | None = None
        self._nudge = asyncio.Event()
        self.stop = asyncio.Event()

    async def run(self, once: bool = False) -> int:
        """Passes until stopped; with `once`, one pass. Returns the exit status."""
        seen: object = None
        while not self.stop.is_set():
            if self._signature() != seen:
                await self._settle()
                # Before the reading, so that what is saved during it is read again; so are new includes.
                seen = self._signature()
                self._reload()
                continue
            status = await self._pass(seen)
            if once:
                return 1 if self._complaint else status
            await self._until_next(seen)
        return 0

    def nudge(self) -> None:
        """A change may have happened: look before the next tick."""
        self._nudge.set()

    def watched(self) -> list[Path]:
        """The named files and everything that they include."""
        included = [Path(path) for path, _ in self._good[0].sources] if self._good else []
        return sorted({*self._paths, *included})

    def _signature(self) -> tuple[object, ...]:
        return tuple((path, signature(path)) for path in self.watched())

    async def _settle(self) -> None:
        before = self._signature()
        while not self.stop.is_set():
            await self._clock.wait(DEBOUNCE, self.stop)
            now = self._signature()
            if now == before:
                return
            before = now

    def _reload(self) -> None:
        """Takes the file if it is good; says what is wrong with it once, and keeps the last good state."""
        try:
            stack, desired = self._work.load()
        except ReconcileError as error:
            text = str(error) if isinstance(error, StackError) else f"error: {error}"
            kept = "the last good state is kept" if self._good else "nothing is changed until it is mended"
            self._complain(f"{text}\n{kept}")
            return
        if self._complaint:
            self._complaint = ""
            self._work.say("the file is good again")
        before = self._good
        self._good = stack, desired
        self._is_fresh = True
        if before is not None and before[0].document != stack.document:
            self._backoff.forget()
            self._work.say("the file changed")
            if before[1].stack != desired.stack:
                self._work.say(
                    f"this is now stack {desired.stack}: engines of {before[1].stack} are left alone"
                )

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._work.say(text)
        self._complaint = text

    async def _pass(self, seen: object) -> int:
        if self._good is None:
            return 1
        held = self._backoff.holds()
        interrupt = asyncio.Event()
        guard = asyncio.create_task(self._interrupt_on_change(seen, interrupt, dict(self._work.pulse())))
        try:
            policy = Policy(hold=held, preload=self._is_fresh)
            result = await self._work.make_pass(*self._good, policy, interrupt)
        except ReconcileError as error:
            self._work.say(f"error: {error}")
            return 1
        finally:
            guard.cancel()
        self._backoff.note(result, held)
        for replica, reason in self._backoff.holds():
            if replica in dict(result.failed):
                self._work.say(f"{replica.short}: {reason}")
        self._due = result.due
        # What is preloaded and then idle is put aside, and not preloaded again.
        self._is_fresh = self._is_fresh and (interrupt.is_set() or bool(result.failed))
        self._note_changes(result, interrupt.is_set())
        return 1 if result.failed or result.plan.blocked else 0

    def _note_changes(self, result: PassResult, was_interrupted: bool) -> None:
        """What happens to an engine while a pass is busy with it, no pulse tells: after changes, look again.
        Not after the same changes again, which would be an endless haste. What interrupted a pass was not
        dealt with by it."""
        steps = tuple(step.id for step in result.plan.steps) if result.plan.has_changes else ()
        self._is_settled = not was_interrupted and (not steps or steps == self._steps)
        self._steps = steps

    async def _interrupt_on_change(
        self, seen: object, interrupt: asyncio.Event, known: dict[object, object]
    ) -> None:
        """A pass may take minutes, an edit or a crash elsewhere should not wait for it."""
        while not interrupt.is_set():
            self._nudge.clear()
            await self._clock.wait(TICK, self._nudge)
            is_asked = self._work.is_asked()
            if self.stop.is_set() or is_asked or self._signature() != seen or self._has_happened(known):
                interrupt.set()

    def _has_happened(self, known: dict[object, object]) -> bool:
        """Whether the pulse of a known engine changed. A pass gets to know engines: those are added."""
        now = self._work.pulse()
        changed = any(known.get(engine, value) != value for engine, value in now.items())
        known.update(now)
        return changed

    async def _until_next(self, seen: object) -> None:
        """Waits for the interval to pass, a file to change, or something to happen to the engines."""
        sooner = [] if self._is_settled else [SETTLE]
        sooner += [] if self._due is None else [self._due]
        deadline = self._clock.now() + min([self._interval, *self._backoff.delays(), *sooner])
        known = dict(self._work.pulse())
        while not self.stop.is_set() and self._clock.now() < deadline:
            # Before the wait, too: who asked during the pass has rung already.
            if self._work.is_asked() or self._signature() != seen or self._has_happened(known):
                return
            self._nudge.clear()
            left = deadline - self._clock.now()
            await self._clock.wait(min(TICK, self._interval, max(left, 0.001)), self._nudge)
