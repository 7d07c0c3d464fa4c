"""How much may pass in a minute: a bucket that fills steadily and holds one minute's worth."""

import math

MINUTE_S = 60.0
# Absorbs what floating point loses. It never adds up: a bucket is at most this much further than it may be.
SLACK_S = 1e-5


class Bucket:
    """`size` units a minute, all of them at once after a minute of rest. Times are monotonic seconds.

    Only one number moves: when the bucket will be full again (the generic cell rate algorithm). A debt is a
    time further away than a minute.
    """

    __slots__ = ("_full_at", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._full_at = 0.0

    def wait(self, units: int, now: float) -> float:
        """Seconds until so many units pass; up to SLACK_S when they pass now, infinite if they never do."""
        if units > self.size:
            return math.inf
        # In this order a bucket's whole size takes exactly a minute, whatever the size.
        needed = units * MINUTE_S / self.size - MINUTE_S
        return needed + self._full_at - now if self._full_at > now else needed

    def take(self, units: int, now: float) -> None:
        """Counts units that pass; a negative number gives some back. Never refuses: ask `wait` before."""
        begin = self._full_at if self._full_at > now else now
        self._full_at = begin + units * MINUTE_S / self.size


def share(limit: int, workers: int) -> int:
    """What each of several processes that count by themselves may let pass of a limit, rounded up."""
    return -(-limit // workers)
