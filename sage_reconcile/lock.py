"""One applier per SAGE_HOME: a lock that dies with its holder, and a note of who holds it."""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

from sage_reconcile.errors import BlockedError
from sage_reconcile.home import Home

TICK = 0.2


class LockNotWanted(BlockedError):
    """Whoever waited for the lock has something else to do now."""


class Turn:
    """The lock of one who holds it; it may be given up for a while, and be taken again."""

    def __init__(
        self, handle: int, say: Callable[[str], None], timeout: float, is_wanted: Callable[[], bool]
    ) -> None:
        self._handle = handle
        self._say = say
        self._timeout = timeout
        self._is_wanted = is_wanted

    def take(self) -> None:
        """Waits for it; raises as `applying` does."""
        _acquire(self._handle, self._say, self._timeout, self._is_wanted)
        with contextlib.suppress(OSError):  # a full disk must not keep anybody from stopping engines
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps({"pid": os.getpid(), "command": _command()}).encode(), 0)

    def give_up(self) -> None:
        """Lets others have it; what was seen under it may then no longer be so."""
        fcntl.flock(self._handle, fcntl.LOCK_UN)


@contextlib.contextmanager
def applying(
    home: Home,
    say: Callable[[str], None],
    timeout: float = 3600.0,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Turn]:
    """Holds the lock. While somebody else does, says once who, and waits for as long as it is wanted.

    Raises LockNotWanted when `is_wanted` no longer is true, BlockedError after `timeout` seconds or when
    SAGE_HOME cannot be written.
    """
    home.claim()
    try:
        path = home.ensure().lock_file
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BlockedError(f"cannot use SAGE_HOME {home.root}: {error.strerror}") from error
    try:
        turn = Turn(handle, say, timeout, is_wanted)
        turn.take()
        yield turn
    finally:
        os.close(handle)


def _acquire(handle: int, say: Callable[[str], None], timeout: float, is_wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(handle)
        if not is_wanted():
            raise LockNotWanted(f"stopped waiting: {holder}")
        if time.monotonic() > deadline:
            raise BlockedError(f"gave up after {timeout:.0f} s: {holder}")
        if not told:
            say(f"waiting: {holder}")
            told = True
        time.sleep(TICK)


def _holder(handle: int) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        note = json.loads(os.pread(handle, 4096, 0))
        return f"process {note['pid']} is applying ({note['command']})"
    return "another process is applying"


def _command() -> str:
    return " ".join(["sage", *sys.argv[1:]])[:200]
