"""How much may pass in a minute: a bucket that fills steadily and holds one minute's worth."""

import math

MINUTE_S = 60.0
# Absorbs what floating point loses. It never adds up: a bucket is at most this much further than it may be.
SLACK_S = 1e-5


class Bucket:
    """`size` units a minute, all of them at once after a minute of rest. Times are monotonic seconds.

    It keeps what is in it, and since when: a moment at which it will be full again would say the same with
    one number less, but loses a little at each request, as clocks show large numbers.
    """

    __slots__ = ("_at", "_level", "_per_s", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._per_s = size / MINUTE_S
        self._level = float(size)
        self._at = 0.0

    def wait(self, units: int, now: float) -> float:
        """Seconds until so many units pass; up to SLACK_S when they pass now, infinite if they never do."""
        if units > self.size:
            return math.inf
        return (units - self._filled(now)) / self._per_s

    def take(self, units: int, now: float) -> None:
        """Counts units that pass; a negative number gives some back. Never refuses: ask `wait` before."""
        self._level = self._filled(now) - units
        self._at = now

    def _filled(self, now: float) -> float:
        """What is in it now; below 0, what it owes."""
        level = self._level + (now - self._at) * self._per_s
        return level if level < self.size else self.size


def share(limit: int, workers: int) -> int:
    """What each of several processes that count by themselves may let pass of a limit, rounded up."""
    return -(-limit // workers)
