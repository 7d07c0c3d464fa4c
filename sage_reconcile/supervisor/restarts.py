"""When to start again, and when to give up. Pure but for the jitter; the clock is the caller's."""

import os

from sage_reconcile.supervisor.order import Restart


def jitter() -> float:
    """Uniform in [0, 1). Not `random`, which costs a supervisor a megabyte of hash libraries."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


class Restarts:
    """The restarts that still count against `max_attempts`; `total` counts all of the launch."""

    def __init__(self) -> None:
        self.total = 0
        self._recent: list[float] = []

    def next_delay(self, now: float, was_ready: bool, settings: Restart) -> float | None:
        """Seconds to wait before the next attempt, or None to give up.

        The first comes at once: most ends are single ones, and nothing is won by waiting. From the second on
        the wait is exponential with full jitter: `backoff` at most, then twice that.

        Old attempts leave the window only when the engine became ready in between: an engine that needs
        longer to fail than the window is long must not be restarted for ever.
        """
        if was_ready:
            self._recent = [at for at in self._recent if now - at < settings.window]
        if len(self._recent) >= settings.max_attempts:
            return None
        before = len(self._recent)
        self._recent.append(now)
        self.total += 1
        if not before:
            return 0.0
        return min(settings.backoff_max, settings.backoff * 2.0 ** min(before - 1, 60)) * jitter()

    def forget(self) -> None:
        """The engine stayed ready for a whole window: its past no longer counts."""
        self._recent.clear()
