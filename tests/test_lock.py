"""One applier per SAGE_HOME."""

import threading
from pathlib import Path

import pytest

from sage_reconcile.errors import BlockedError
from sage_reconcile.home import Home
from sage_reconcile.lock import LockNotWanted, applying


def test_who_waits_is_told_who_holds_it_and_may_leave(tmp_path: Path) -> None:
    home, told = Home(tmp_path / "home"), list[str]()
    with applying(home, told.append):
        with (
            pytest.raises(LockNotWanted, match="is applying"),
            applying(home, told.append, is_wanted=lambda: not told),
        ):
            pytest.fail("two hold the lock")
        with pytest.raises(BlockedError, match="gave up after 0 s"), applying(home, told.append, timeout=0.0):
            pytest.fail("two hold the lock")
    (first, *_) = told
    assert first.startswith("waiting: process ")


def test_the_lock_is_handed_on(tmp_path: Path) -> None:
    home, order = Home(tmp_path / "home"), list[str]()
    waits = threading.Event()

    def second() -> None:
        with applying(home, lambda _: waits.set()):
            order.append("second")

    with applying(home, order.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30.0)
        order.append("first")
    thread.join(30.0)
    assert order == ["first", "second"]


def test_a_home_that_cannot_be_made_is_a_clear_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BlockedError, match="cannot use SAGE_HOME"),
        applying(Home(tmp_path / "file" / "home"), print),
    ):
        pytest.fail("there is no such home")
