"""The worker processes of a gateway: as many as wanted, and another one for each that ends."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

# What a worker sends to its parent once it serves by the routing table and accepts connections, and when it
# accepts no more.
READY, LEAVING = b"R", b"L"
# The pause before another worker, if one ended before it served: doubled each time, seconds.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 30.0
# So many ends at start in a row, while no other worker serves, are no accident.
MAX_FAILURES = 5


@dataclass(slots=True)
class Worker:
    """One process; `channel` is ours of a pair whose other end it holds: each sees the other's end there."""

    pid: int
    channel: socket.socket
    is_ready: bool = False
    is_leaving: bool = False


class Workers:
    """Keeps `wanted` processes of `command` running, which gets the number of its channel as last word.

    `fault` says why no worker can be had, or is ""; `fault_code` is the exit code of the last one then.
    """

    def __init__(self, command: list[str], wanted: int, warn: Callable[[str], None]) -> None:
        self.living: dict[int, Worker] = {}
        self.wanted = wanted
        self.fault = ""
        self.fault_code = 1
        self._command = command
        self._warn = warn
        self._has_served = False
        self._failures = 0
        self._next_start = 0.0

    @property
    def serving(self) -> int:
        """How many take connections."""
        return sum(worker.is_ready and not worker.is_leaving for worker in self.living.values())

    @property
    def missing(self) -> int:
        """How many are to be started; one that only finishes what it has in flight is no longer there."""
        return self.wanted - sum(not worker.is_leaving for worker in self.living.values())

    def fill(self) -> list[Worker]:
        """Starts those that are missing, unless it is too early; the new ones."""
        started = []
        while self.missing > 0 and time.monotonic() >= self._next_start and not self.fault:
            try:
                started.append(self._start())
            except OSError as error:  # no memory, or too many processes: those that serve go on
                self._consider_failure(f"a worker cannot be started: {error.strerror}", 1)
        return started

    def patience(self) -> float | None:
        """Seconds until `fill` has something to do, or None if nothing is missing."""
        if self.missing <= 0:
            return None
        return max(0.0, self._next_start - time.monotonic())

    def hear(self, worker: Worker) -> bool:
        """Takes in what a worker told. False when it will tell nothing any more."""
        try:
            told = worker.channel.recv(16)
        except OSError:
            told = b""
        if READY in told:
            worker.is_ready = self._has_served = True
            self._failures = 0
        if LEAVING in told:
            worker.is_leaving = True
        return bool(told)

    def reap(self) -> list[Worker]:
        """Those that have ended since; their channels are the caller's to close."""
        ended = []
        for worker in list(self.living.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                # Its last word may not have been heard yet.
                self.hear(worker)
                del self.living[pid]
                self._consider(worker, os.waitstatus_to_exitcode(status))
                ended.append(worker)
        return ended

    def send(self, number: signal.Signals) -> None:
        """A signal to each of them."""
        for pid in self.living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _consider(self, worker: Worker, code: int) -> None:
        """When there may be another one for a worker that has ended, if at all."""
        how = f"with code {code}" if code >= 0 else f"by {_name(-code)}"
        if not self.wanted or worker.is_leaving:
            return
        if worker.is_ready:
            self._warn(f"worker {worker.pid} ended {how}; another one starts")
        else:
            self._consider_failure(f"worker {worker.pid} ended at start {how}", max(code, 1))

    def _consider_failure(self, what: str, code: int) -> None:
        self._failures += 1
        if not self._has_served or (self._failures >= MAX_FAILURES and not self.serving):
            self.fault, self.fault_code = what, code
            return
        pause = min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LAST_PAUSE_S)
        self._next_start = time.monotonic() + pause
        self._warn(f"{what}; another one starts in {pause:g} s")

    def _start(self) -> Worker:
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, theirs:
            undo.enter_context(ours)
            theirs.set_inheritable(True)
            command = [*self._command, str(theirs.fileno())]
            # A process group of its own: Ctrl-C reaches only this process, which hands it on once.
            pid = os.posix_spawn(sys.executable, command, os.environ, setpgroup=0, setsigmask=())
            undo.pop_all()
        ours.setblocking(False)
        self.living[pid] = Worker(pid, ours)
        return self.living[pid]


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has none
        return f"signal {number}"
