"""How fast the gateway's core is at this moment, and a machine in a few words."""

import contextlib
import os
import platform
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

EVERY_S = 0.1
SETTLED = 1.1
"""Times as slow as at its best that a core may be when a phase begins."""


class Speed(threading.Thread):
    """Times a fixed piece of work on one core ten times a second, in about 1 % of its time.

    A core of a virtual machine can be half as fast at one moment as at another, when the other hardware
    thread of that core is busy with something else. `cores` as in `Cores.gateway`; the first is watched.
    """

    def __init__(self, cores: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self._cores = cores
        self.samples: list[float] = []

    def run(self) -> None:
        if self._cores:
            os.sched_setaffinity(0, {self._cores[0]})  # of this thread alone
        near, far = socket.socketpair()
        while True:
            self._work(near, far, 20)  # brings its code and data back into the caches
            began = time.thread_time()
            self._work(near, far, 100)
            self.samples.append(time.thread_time() - began)
            time.sleep(EVERY_S)

    @staticmethod
    def _work(near: socket.socket, far: socket.socket, rounds: int) -> None:
        """Some interpreting and some system calls, as a gateway does."""
        data = b"x" * 256
        seen: dict[int, int] = {}
        for number in range(rounds):
            near.send(data)
            seen[number & 31] = far.recv(4096)[number & 15 :].find(b"y")
            for key, value in seen.items():
                seen[key] = value

    @property
    def best(self) -> float:
        """Seconds that the work takes when nothing is in the way."""
        samples = sorted(self.samples)
        return samples[len(samples) // 50]

    def settle(self, limit: float) -> None:
        """Waits until the core is about as fast as it ever was, for `limit` seconds at most."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            time.sleep(0.5)
            if statistics.median(self.samples[-5:]) < SETTLED * self.best:
                break

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[float]]:
        """A list that holds, after the block, the samples taken in it."""
        first = len(self.samples)
        collected: list[float] = []
        yield collected
        collected += self.samples[first:] or self.samples[-1:]


def machine() -> dict[str, str | int | float]:
    """What measured: processor, usable cores, kernel, Python; how many others wanted the cores before."""
    cpu = ""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
