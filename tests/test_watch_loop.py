"""The watcher's loop over time: files that change under it, passes that fail, replicas that wait."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sage_reconcile.errors import Fault, StackError, TransientError
from sage_reconcile.model.actions import Kept, Plan, Step, Verdict
from sage_reconcile.model.desired import DesiredState, ReplicaId
from sage_reconcile.plan.policy import Policy
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.schema import Stack
from sage_reconcile.watch import BACKOFF_MAX, TICK, Backoff, PassResult, Watcher
from tests.build import STACK

CHAT, OTHER = ReplicaId(STACK, "chat", 0), ReplicaId(STACK, "other", 0)
SETTLING = 0.15


class FakeClock:
    """Time that passes only when somebody waits for it; `at` runs what is due on the way."""

    def __init__(self) -> None:
        self.time = 100.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.time

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Runs `do` once `seconds` have passed from the beginning."""
        self._due.append((100.0 + seconds, do))

    async def wait(self, seconds: float, stop: asyncio.Event) -> None:
        self.time += seconds
        assert self.time < 10_000.0, "nothing ended the watcher"
        for due in [entry for entry in self._due if entry[0] <= self.time]:
            self._due.remove(due)
            due[1]()
        await asyncio.sleep(0)


def result(
    *failed: ReplicaId, tried: tuple[ReplicaId, ...] = (), held: tuple[ReplicaId, ...] = ()
) -> PassResult:
    steps = tuple(Step(f"start:{r.short}", Verdict.START, r, "not running", ()) for r in (*failed, *tried))
    kept = tuple(Kept(r, Verdict.HOLD, "held") for r in held)
    return PassResult(Plan(STACK, steps, kept=kept), tuple((r, "no memory") for r in failed))


class FakeWork:
    """Work whose file is "good ..." or not, and whose passes are scripted by `outcome`."""

    def __init__(self, path: Path, clock: FakeClock) -> None:
        self.path = path
        self.clock = clock
        self.passes: list[tuple[float, str, tuple[ReplicaId, ...]]] = []
        self.said: list[str] = []
        self.beat: dict[object, object] = {"chat": "alive"}
        self.during: Callable[[asyncio.Event], object] = lambda interrupt: None
        self.outcome: Callable[[Policy], PassResult] = lambda policy: result()
        self.interrupted: list[bool] = []
        self.asks = self.answered = 0

    def load(self) -> tuple[StackFile, DesiredState]:
        text = self.path.read_text()
        if not text.startswith("good"):
            raise StackError((Fault(str(self.path), 1, 1, "", "not good"),))
        source = (str(self.path), hashlib.sha256(text.encode()).hexdigest())
        content = text.partition("#")[0].strip()
        stack = StackFile(STACK, {"text": content}, self.path.parent, (source,), Stack(version=1, engines=()))
        return stack, DesiredState(STACK, ())

    async def make_pass(
        self, stack: StackFile, desired: DesiredState, policy: Policy, interrupt: asyncio.Event
    ) -> PassResult:
        self.passes.append(
            (self.clock.time - 100.0, stack.document["text"], tuple(r for r, _ in policy.hold))
        )
        self.answered = self.asks
        waiting = self.during(interrupt)
        if asyncio.iscoroutine(waiting):
            await waiting
        self.interrupted.append(interrupt.is_set())
        return self.outcome(policy)

    def pulse(self) -> Mapping[object, object]:
        return self.beat

    def is_asked(self) -> bool:
        return self.asks > self.answered

    def die(self) -> None:
        self.beat["chat"] = "dead"

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def texts(self) -> list[str]:
        return [text for _, text, _ in self.passes]

    @property
    def times(self) -> list[float]:
        return [round(at, 2) for at, _, _ in self.passes]


class Bench:
    """A watcher over one file, on a fake clock."""

    def __init__(self, folder: Path, interval: float = 10.0) -> None:
        self.path = folder / "sage.yaml"
        self.path.write_text("good 1")
        self.clock = FakeClock()
        self.work = FakeWork(self.path, self.clock)
        self.watcher = Watcher([self.path], self.work, interval, self.clock)

    def write(self, text: str) -> Callable[[], None]:
        return lambda: (self.path.write_text(text), None)[1]

    def run(self, seconds: float) -> FakeWork:
        """Lets the watcher run for so long."""
        self.clock.at(seconds, self.watcher.stop.set)
        assert asyncio.run(self.watcher.run()) == 0
        return self.work


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_pass_at_once_and_one_at_every_interval(bench: Bench) -> None:
    work = bench.run(35.0)
    assert work.times == [SETTLING, 10.15, 20.15, 30.15]


def test_a_change_is_seen_within_a_tick_and_read_when_it_has_settled(bench: Bench) -> None:
    bench.clock.at(3.0, bench.write("good 2, half"))
    bench.clock.at(3.3, bench.write("good 2, whole"))
    work = bench.run(6.0)
    assert work.texts == ["good 1", "good 2, whole"]
    assert 3.3 < work.times[1] < 4.0
    assert work.said == ["the file changed"]


def test_a_comment_makes_a_pass_but_is_not_told_as_a_change(bench: Bench) -> None:
    bench.clock.at(3.0, bench.write("good 1 # why"))
    work = bench.run(6.0)
    assert len(work.passes) == 2
    assert work.said == []


@pytest.mark.parametrize("broken", ["", "bad"])
def test_a_bad_edit_is_told_once_and_the_last_good_state_is_kept(bench: Bench, broken: str) -> None:
    bench.clock.at(3.0, bench.write(broken))
    bench.clock.at(33.0, bench.write("good 3"))
    work = bench.run(40.0)
    assert set(work.texts[1:-1]) == {"good 1"}
    assert len(work.texts) > 3
    assert work.texts[-1] == "good 3"
    assert len(work.said) == 3
    assert work.said[0].endswith("not good\nthe last good state is kept")
    assert work.said[1:] == ["the file is good again", "the file changed"]


def test_a_file_that_vanishes_ends_nothing(bench: Bench) -> None:
    def fail() -> None:
        bench.path.unlink()
        bench.work.load = unreadable  # type: ignore[method-assign]

    def unreadable() -> tuple[StackFile, DesiredState]:
        raise StackError((Fault(str(bench.path), 0, 0, "", "cannot be read: No such file"),))

    bench.clock.at(3.0, fail)
    work = bench.run(25.0)
    assert set(work.texts) == {"good 1"}
    assert len(work.texts) > 2


def test_a_file_that_is_bad_from_the_start_makes_no_pass(bench: Bench) -> None:
    bench.path.write_text("bad")
    bench.clock.at(5.0, bench.write("good 2"))
    work = bench.run(8.0)
    assert work.said[0].endswith("nothing is changed until it is mended")
    assert work.texts == ["good 2"]


def test_what_happens_to_the_engines_wakes_the_watcher(bench: Bench) -> None:
    bench.clock.at(3.0, bench.work.die)
    work = bench.run(6.0)
    assert len(work.passes) == 2
    assert 3.0 <= work.times[1] <= 3.5


@pytest.mark.parametrize("what", ["file", "pulse"])
def test_a_change_interrupts_a_pass_that_waits(bench: Bench, what: str) -> None:
    change = bench.write("good 2") if what == "file" else bench.work.die
    bench.clock.at(3.0, change)

    def during(interrupt: asyncio.Event) -> object:
        return interrupt.wait() if not bench.work.interrupted else None

    bench.work.during = during
    work = bench.run(8.0)
    assert work.interrupted == [True, False]
    assert work.times[1] < 5.0


def test_stopping_interrupts_a_pass(bench: Bench) -> None:
    bench.work.during = lambda interrupt: interrupt.wait()
    assert bench.run(4.0).interrupted == [True]


def test_a_replica_that_fails_waits_longer_each_time(bench: Bench) -> None:
    bench.watcher._backoff.jitter = lambda: 1.0
    bench.work.outcome = lambda policy: result(held=(CHAT,)) if policy.hold else result(CHAT)
    work = bench.run(100.0)
    tries = [round(at - SETTLING) for at, _, held in work.passes if CHAT not in held]
    assert tries[:5] == [0, 2, 6, 14, 30]
    assert len(work.passes) < 30


def test_what_was_held_is_told_how_often_it_failed() -> None:
    clock = FakeClock()
    backoff = Backoff(clock, jitter=lambda: 0.0)
    backoff.note(result(CHAT))
    assert backoff.holds() == ((CHAT, "failed 1 time; next attempt in 1 s"),)
    clock.time += 1.0
    assert backoff.holds() == ()
    backoff.note(result(CHAT))
    assert backoff.holds() == ((CHAT, "failed 2 times; next attempt in 2 s"),)


def test_the_wait_has_a_bound() -> None:
    clock = FakeClock()
    backoff = Backoff(clock, jitter=lambda: 1.0)
    for _ in range(40):
        backoff.note(result(CHAT))
    assert backoff.delays() == [BACKOFF_MAX]


def test_a_new_file_is_a_new_chance(bench: Bench) -> None:
    bench.work.outcome = lambda policy: result(CHAT) if not bench.work.passes[1:] else result()
    bench.clock.at(0.6, bench.write("good 2"))
    work = bench.run(4.0)
    assert work.passes[1][2] == ()
    assert work.times[1] < 1.5


def test_one_that_came_up_by_itself_is_forgotten(bench: Bench) -> None:
    """Its next plan has no step for it: neither failed nor held, it must not wake the watcher for ever."""
    bench.work.outcome = lambda policy: result(CHAT) if len(bench.work.passes) == 1 else result()
    work = bench.run(60.0)
    assert len(work.passes) < 10
    assert bench.watcher._backoff.delays() == []


def test_success_forgets_the_failures_of_one_replica_only() -> None:
    clock = FakeClock()
    backoff = Backoff(clock, jitter=lambda: 0.0)
    backoff.note(result(CHAT, OTHER))
    backoff.holds()
    clock.time += 5.0
    assert backoff.holds() == ()
    backoff.note(result(OTHER, tried=(CHAT,)))
    assert [replica for replica, _ in backoff.holds()] == [OTHER]


def test_a_pass_that_raises_is_told_and_tried_again_at_the_interval(bench: Bench) -> None:
    def fail(policy: Policy) -> PassResult:
        raise TransientError("cannot publish routes: No space left on device")

    bench.work.outcome = fail
    work = bench.run(25.0)
    assert work.said == ["error: cannot publish routes: No space left on device"] * 3
    assert work.times == [SETTLING, 10.15, 20.15]


@pytest.mark.parametrize(("made", "status"), [(result(), 0), (result(CHAT), 1)])
def test_once_makes_one_pass_and_tells_how_it_went(bench: Bench, made: PassResult, status: int) -> None:
    bench.work.outcome = lambda policy: made
    assert asyncio.run(bench.watcher.run(once=True)) == status
    assert len(bench.work.passes) == 1


def test_once_with_a_bad_file_fails(bench: Bench) -> None:
    bench.path.write_text("bad")
    assert asyncio.run(bench.watcher.run(once=True)) == 1
    assert bench.work.passes == []


def test_an_included_file_is_watched_too(bench: Bench, tmp_path: Path) -> None:
    included = tmp_path / "base.yaml"
    included.write_text("1")
    load = bench.work.load

    def with_include() -> tuple[StackFile, DesiredState]:
        stack, desired = load()
        sources = (*stack.sources, (str(included), "x"))
        return StackFile(
            stack.name, {"text": included.read_text()}, stack.base, sources, stack.model
        ), desired

    bench.work.load = with_include  # type: ignore[method-assign]
    bench.clock.at(3.0, lambda: (included.write_text("22"), None)[1])
    assert bench.run(6.0).texts == ["1", "22"]


def test_another_stack_name_is_told() -> None:
    clock = FakeClock()
    said: list[str] = []

    class Renamed(FakeWork):
        def load(self) -> tuple[StackFile, DesiredState]:
            stack, _ = super().load()
            return stack, DesiredState("b" if "2" in stack.document["text"] else "a", ())

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sage.yaml"
        path.write_text("good 1")
        work = Renamed(path, clock)
        watcher = Watcher([path], work, 10.0, clock)
        clock.at(2.0, lambda: (path.write_text("good 2"), None)[1])
        clock.at(4.0, watcher.stop.set)
        asyncio.run(watcher.run())
        said = work.said
    assert said[-1] == "this is now stack b: engines of a are left alone"


def test_whoever_asks_is_looked_at_at_once(bench: Bench) -> None:
    def ask() -> None:
        bench.work.asks += 1

    bench.clock.at(3.0, ask)
    times = bench.run(5.0).times
    assert len(times) == 2
    assert times[1] < 3.0 + 2 * TICK


def test_whoever_asks_during_a_pass_gets_the_next_one(bench: Bench) -> None:
    """The pass begins nothing new, and is followed by another one without a pause."""

    async def loading(interrupt: asyncio.Event) -> None:
        if len(bench.work.passes) == 1:
            bench.work.asks += 1
            await interrupt.wait()

    bench.work.during = loading
    work = bench.run(5.0)
    assert work.interrupted[0]
    assert len(work.times) >= 2
    assert work.times[1] < 1.0


def test_time_alone_asks_for_a_pass(bench: Bench) -> None:
    bench.work.outcome = lambda policy: PassResult(
        Plan(STACK), due=2.0 if len(bench.work.passes) == 1 else None
    )
    times = bench.run(5.0).times
    assert len(times) == 2
    assert times[1] - times[0] == pytest.approx(2.0, abs=TICK)


def test_what_is_preloaded_is_so_once_for_each_file(bench: Bench) -> None:
    """Put aside because it is idle, it is not preloaded by the next pass."""
    preloads: list[bool] = []

    def passed(policy: Policy) -> PassResult:
        preloads.append(policy.preload)
        return result(CHAT) if len(preloads) == 1 else result()

    bench.work.outcome = passed
    bench.clock.at(25.0, bench.write("good 2"))
    bench.run(30.0)
    assert preloads[:3] == [True, True, False]
    assert preloads[-1]
