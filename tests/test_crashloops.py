"""When a watcher leaves an engine alone, and when it tries again."""

from collections.abc import Sequence

import pytest

from sage_reconcile.crashloops import CrashLoops
from sage_reconcile.model.desired import LiveSpec, ReplicaId, RestartSpec
from sage_reconcile.model.observed import LOST, LastExit
from sage_reconcile.supervisor.exits import GAVE_UP
from tests.build import STACK, desired, engine, mark, observed, running

CHAT = ReplicaId(STACK, "chat", 0)
LIVE = LiveSpec(restart=RestartSpec(max_attempts=2, window=100.0))
WANTED = desired(engine("chat", live=LIVE))


def end(at: float, was_ready: bool = True, cause: str = "crashed (SIGSEGV)", hint: str = "") -> LastExit:
    return LastExit(at, None, 11, was_ready, cause, hint)


class Watching:
    """A watcher's memory that has had its first look."""

    def __init__(self, *known: LastExit) -> None:
        self.loops = CrashLoops()
        self.look(known)

    def look(
        self, ends: Sequence[LastExit], now: float = 0.0, document: str = "", runs: bool = False
    ) -> tuple[str, ...]:
        """Takes a look at which the newest of these ends is seen; gives what is told."""
        exits = tuple((CHAT, one) for one in ends[-1:])
        launches = (running(mark("chat")),) if runs else ()
        state = observed(*launches, exits=exits)
        return tuple(text for _, text in self.loops.note(state, WANTED, {"text": document}, now))

    @property
    def holds(self) -> bool:
        return bool(self.loops.holds)


def test_a_launch_whose_supervisor_gave_up_is_left_alone_and_told_once() -> None:
    watching = Watching()
    (told,) = watching.look([end(1.0, hint=f"look; {GAVE_UP} (2) restarts used up")])
    assert "crash loop" in told
    assert "crashed (SIGSEGV)" in told
    assert "sage restart chat" in told
    assert watching.look([end(1.0, hint=f"look; {GAVE_UP} (2) restarts used up")], 5.0) == ()
    assert watching.holds


def test_a_changed_file_is_a_new_chance() -> None:
    watching = Watching()
    watching.look([end(1.0, hint=GAVE_UP)])
    watching.look([end(1.0, hint=GAVE_UP)], document="edited")
    assert not watching.holds
    watching.look([end(1.0, hint=GAVE_UP)], document="edited")
    assert not watching.holds, "what ended before the edit says nothing about it"
    watching.look([end(2.0, hint=GAVE_UP)], document="edited")
    assert watching.holds


def test_what_a_new_watcher_finds_is_not_held() -> None:
    assert not Watching(end(1.0, hint=GAVE_UP)).holds


def test_one_that_was_started_by_hand_is_no_longer_held() -> None:
    watching = Watching()
    watching.look([end(1.0, hint=GAVE_UP)])
    watching.look([end(1.0, hint=GAVE_UP)], runs=True)
    assert not watching.holds


def test_ends_while_the_supervisor_restarts_are_its_own_business() -> None:
    watching = Watching()
    for at in range(1, 20):
        watching.look([end(at)], runs=True)
    assert not watching.holds
    watching.look([end(20.0, hint=GAVE_UP)])
    assert watching.holds


def test_starts_that_fail_again_and_again_are_given_up() -> None:
    watching = Watching()
    told = [watching.look([end(at, was_ready=False)], now=at) for at in (1.0, 500.0, 1000.0)]
    assert told[:2] == [(), ()]
    assert "(crashed (SIGSEGV)), 3 times" in told[2][0]


def test_ends_outside_the_window_of_engines_that_had_been_ready_do_not_count() -> None:
    watching = Watching()
    for at in (1.0, 150.0, 300.0, 450.0):
        watching.look([end(at)], now=at)
    assert not watching.holds
    for at in (451.0, 452.0):
        watching.look([end(at)], now=at)
    assert watching.holds


@pytest.mark.parametrize("cause", ["address already in use", "not ready within 9 s: model cannot be fetched"])
def test_what_may_pass_by_itself_is_tried_for_ever(cause: str) -> None:
    watching = Watching()
    for at in range(1, 20):
        watching.look([end(at, was_ready=False, cause=cause)], now=at)
    assert not watching.holds


@pytest.mark.parametrize("cause", [LOST, "stopped"])
def test_what_others_ended_is_no_crash(cause: str) -> None:
    watching = Watching()
    for at in range(1, 20):
        watching.look([end(at, cause=cause)], now=at)
    assert not watching.holds


def test_a_clock_that_is_set_back_hides_no_end() -> None:
    watching = Watching(end(5000.0))
    watching.look([end(10.0, hint=GAVE_UP)], now=1.0)
    assert watching.holds
