"""All that wakes a supervisor: signals, ended children, the engine's output, answers of probes."""

import contextlib
import os
import select
import signal
from collections.abc import Callable
from types import FrameType

CHUNK = 65536
# Output read in one turn: an engine that floods its log must not keep its supervisor from anything else.
CHUNKS_A_TURN = 16


class Events:
    """`stops` counts SIGTERMs. `output` is the write end that the engine gets as stdout and stderr.

    Handlers are functions even where nothing is to be done: an ignored signal would stay ignored in the
    engine, through exec. The pipe stays open across attempts, so that it never ends under a reader.
    """

    def __init__(self, on_output: Callable[[bytes], None]) -> None:
        self.stops = 0
        self.main_pid: int | None = None
        self.main_status: int | None = None
        self._on_output = on_output
        self._woken, self._waker = os.pipe()
        self._output, self.output = os.pipe()
        for descriptor in (self._woken, self._waker, self._output):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)
        self._poll.register(self._output, select.POLLIN)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_stop)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_other)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def wake(self) -> None:
        """From any thread: makes `wait` return."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def follow(self, pid: int) -> None:
        """Keep the exit status of this child; those of all others are thrown away."""
        self.main_pid, self.main_status = pid, None

    def wait(self, timeout: float) -> None:
        """Sleeps until something happens, `timeout` seconds at most; then takes all of it in."""
        ready = dict(self._poll.poll(max(0.0, timeout) * 1000))
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, CHUNK)
        self.reap()
        self.read_output(CHUNKS_A_TURN)

    def read_output(self, chunks: int) -> None:
        """Passes on what the engine has written, so many reads at most."""
        for _ in range(chunks):
            try:
                data = os.read(self._output, CHUNK)
            except BlockingIOError:
                return
            self._on_output(data)

    def reap(self) -> None:
        """Ends every zombie among our children, adopted ones too."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.main_pid:
                    self.main_status = status

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stops += 1

    def _on_other(self, _number: int, _frame: FrameType | None) -> None:
        """The wakeup pipe has already woken us."""
