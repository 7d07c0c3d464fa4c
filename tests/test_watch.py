"""The watcher's loop on a fake clock: what happens at a bad moment is not lost."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from sage_reconcile.model.actions import Plan
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.plan.policy import Policy
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve
from sage_reconcile.watch import PassResult, Watcher


class FakeClock:
    """Time that passes as fast as it is waited for."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def wait(self, seconds: float, stop: asyncio.Event) -> None:
        await asyncio.sleep(0)
        self.time += seconds


class FakeWork:
    """Loads the real file; its passes only note which engines the file asks for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.passes: list[list[str]] = []
        self.interrupted: list[bool] = []
        self.said: list[str] = []
        self.beat: dict[object, object] = {}
        self.during_load: Callable[[], None] = lambda: None
        self.during_pass: Callable[[], None] = lambda: None

    def is_asked(self) -> bool:
        return False

    def load(self) -> tuple[StackFile, DesiredState]:
        stack = load([self.path], {})
        self.during_load()
        return stack, resolve(stack)

    async def make_pass(
        self, stack: StackFile, desired: DesiredState, policy: Policy, interrupt: asyncio.Event
    ) -> PassResult:
        self.passes.append([engine.name for engine in desired.engines])
        self.during_pass()
        for _ in range(20):
            await asyncio.sleep(0)
        self.interrupted.append(interrupt.is_set())
        return PassResult(Plan(desired.stack))

    def pulse(self) -> Mapping[object, object]:
        return dict(self.beat)

    def say(self, text: str) -> None:
        self.said.append(text)


def write(path: Path, *names: str) -> None:
    engines = [{"name": name, "runtime": "external", "url": "http://x:1", "model": "m"} for name in names]
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"name": "demo", "engines": engines}))
    part.replace(path)


def watch(work: FakeWork, passes: int, interval: float = 1e9) -> None:
    """Runs until so many passes were made; with such an interval none comes from the clock."""

    async def run() -> None:
        watcher = Watcher([work.path], work, interval, FakeClock())
        running = asyncio.create_task(watcher.run())
        async with asyncio.timeout(20):
            while len(work.interrupted) < passes:
                await asyncio.sleep(0)
        watcher.stop.set()
        await running

    asyncio.run(run())


def test_a_save_while_the_file_is_read_is_read_too(tmp_path: Path) -> None:
    work = FakeWork(tmp_path / "sage.yaml")
    write(work.path, "old")

    def save() -> None:
        work.during_load = lambda: None
        write(work.path, "new")

    work.during_load = save
    watch(work, passes=1)
    assert work.passes == [["new"]]


def test_a_save_during_a_pass_interrupts_it_and_is_applied(tmp_path: Path) -> None:
    work = FakeWork(tmp_path / "sage.yaml")
    write(work.path, "old")

    def save() -> None:
        work.during_pass = lambda: None
        write(work.path, "new")

    work.during_pass = save
    watch(work, passes=2)
    assert work.passes == [["old"], ["new"]]
    assert work.interrupted == [True, False]


def test_an_engine_that_a_pass_gets_to_know_does_not_interrupt_it(tmp_path: Path) -> None:
    work = FakeWork(tmp_path / "sage.yaml")
    write(work.path, "a")
    work.during_pass = lambda: work.beat.update({"a": "alive"})
    watch(work, passes=1)
    assert work.interrupted == [False]


def test_the_death_of_a_known_engine_interrupts_a_pass(tmp_path: Path) -> None:
    work = FakeWork(tmp_path / "sage.yaml")
    write(work.path, "a", "b")
    work.beat["a"] = "alive"
    work.during_pass = lambda: work.beat.update({"a": "dead"})
    watch(work, passes=1)
    assert work.interrupted == [True]
