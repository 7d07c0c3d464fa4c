"""Asks in a thread of its own, so that an engine that hangs never delays a signal or a reaping."""

import threading
import time
from collections.abc import Callable

from sage_reconcile.supervisor.order import Target
from sage_reconcile.supervisor.probe import Client, Look, silence

# Beyond the deadline that the sockets keep themselves; then the connection is torn from under the thread.
GRACE = 1.0

Question = Callable[[Client], Look]


class _Asking(threading.Thread):
    def __init__(self, client: Client, question: Question, wake: Callable[[], None]) -> None:
        super().__init__(name="probe", daemon=True)
        self.client = client
        self.question = question
        self.wake = wake
        self.look: Look | None = None

    def run(self) -> None:
        self.look = self.question(self.client)
        self.wake()


class Prober:
    """At most one question under way. `wake` is called from the probing thread when an answer is there."""

    def __init__(self, target: Target, wake: Callable[[], None]) -> None:
        self.target = target
        self.wake = wake
        self._asking: _Asking | None = None

    @property
    def is_asking(self) -> bool:
        return self._asking is not None

    @property
    def deadline(self) -> float:
        """When `answer` gives up on the question under way (monotonic seconds)."""
        return self._asking.client.deadline + GRACE if self._asking else float("inf")

    def ask(self, question: Question, timeout: float) -> None:
        """Starts asking; `timeout` in seconds."""
        self._asking = _Asking(Client(self.target, timeout), question, self.wake)
        self._asking.start()

    def answer(self) -> Look | None:
        """The answer, once; None while there is none yet."""
        if self._asking is None:
            return None
        look = self._asking.look
        if look is None and time.monotonic() >= self.deadline:
            look = silence(self._asking.client.timeout)
        if look is not None:
            self.cancel()
        return look

    def cancel(self) -> None:
        """Forgets the question under way; its thread ends on its own."""
        if self._asking is not None and self._asking.look is None:
            self._asking.client.abort()
        self._asking = None
