"""Ended means that the memory is back: whoever starts next on the GPU waits for NVML to say so."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sage_reconcile.apply import local
from sage_reconcile.apply.local import LocalHands, Senses
from sage_reconcile.errors import TransientError
from sage_reconcile.home import Home
from sage_reconcile.model.observed import GpuHolder, ObservedGpu, Orphan
from tests.build import gpu, mark


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Orphan]:
    """A process that is left over of a launch on GPU 0."""
    of = mark("chat", home=str(tmp_path), id="0badcafe")
    environ = {"PATH": os.environ["PATH"], "SAGE_LAUNCH": json.dumps({"home": of.home, "launch": of.launch})}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environ)
    yield Orphan(of, (process.pid,))
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


Look = Callable[[int], ObservedGpu]


def reap(orphan: Orphan, look: Look) -> int:
    """Ends the leftovers; how often the GPU was looked at until that was over. `look` gets the number."""
    looks = 0

    def gpus() -> tuple[ObservedGpu, ...]:
        nonlocal looks
        looks += 1
        return (look(looks),)

    hands = LocalHands(Home(Path(orphan.mark.home)), Senses(gpus, lambda _: None))
    asyncio.run(hands.reap(orphan))
    return looks


def held_by(pid: int, mib: int, name: str = "engine") -> ObservedGpu:
    return replace(gpu(0, used=mib), holders=(GpuHolder(pid, name, mib),) if mib else ())


def test_the_next_one_waits_until_the_driver_names_the_process_no_more(left: Orphan) -> None:
    (pid,) = left.pids
    assert reap(left, lambda number: held_by(pid, 40_000 if number < 4 else 0)) == 4


def test_memory_that_never_comes_back_is_a_failure(left: Orphan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MEMORY_GRACE", 0.2)
    (pid,) = left.pids
    with pytest.raises(TransientError, match="has ended but its GPU memory is not back"):
        reap(left, lambda _: held_by(pid, 40_000))


def test_memory_of_others_is_not_waited_for(left: Orphan) -> None:
    assert reap(left, lambda _: held_by(1, 40_000)) == 1


def test_where_processes_are_not_told_it_waits_while_memory_falls(left: Orphan) -> None:
    """NVML tells the numbers of another PID namespace."""
    falling = [held_by(7, mib, "") for mib in (40_000, 30_000, 1_000, 1_000)]
    assert reap(left, lambda number: falling[number - 1]) == len(falling)
