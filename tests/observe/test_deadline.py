import asyncio
import threading

import pytest

from sage_reconcile.observe.deadline import Deadline
from tests.observe.launches import eventually


def test_the_result_and_the_error_come_through() -> None:
    def fail() -> None:
        raise OSError("disk on fire")

    assert asyncio.run(Deadline("x", 5.0, lambda: 42)()) == 42
    with pytest.raises(OSError, match="disk on fire"):
        asyncio.run(Deadline("x", 5.0, fail)())


def test_a_call_that_hangs_is_left_behind_and_not_started_again() -> None:
    release, calls = threading.Event(), []

    def hang() -> str:
        calls.append(1)
        release.wait()
        return "back"

    look = Deadline("NVML", 0.05, hang)
    with pytest.raises(TimeoutError, match="NVML gave no answer within"):
        asyncio.run(look())
    with pytest.raises(TimeoutError, match="NVML still does not answer"):
        asyncio.run(look())
    assert len(calls) == 1
    release.set()
    eventually(lambda: look._running is None or not look._running.is_alive(), "the thread ends")
    assert asyncio.run(look()) == "back"


def test_a_timeout_of_the_call_itself_keeps_its_words() -> None:
    def fail() -> None:
        raise TimeoutError("the driver says so")

    with pytest.raises(TimeoutError, match="the driver says so"):
        asyncio.run(Deadline("x", 5.0, fail)())
