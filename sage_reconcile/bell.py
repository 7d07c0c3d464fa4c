"""The bell of a stack: a pipe by which the gateway wakes its watcher. A ring carries no news: look again.

That a watcher holds the reading end is how the gateway knows that somebody reconciles the stack; the kernel
closes it with the watcher, however that ends. So the pipe itself may stay.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from sage_reconcile.home import Home


class Bell:
    """Listens for one stack at a time; `rung` is called in the event loop."""

    def __init__(self, home: Home, rung: Callable[[], None]) -> None:
        self._home = home
        self._rung = rung
        self._stack = ""
        self._handle: int | None = None

    def listen(self, stack: str) -> None:
        """Listens for this stack from now on. Where no pipe can be made, the watcher's own tick has to do."""
        if stack == self._stack and self._handle is not None:
            return
        self.close()
        path = bell_file(self._home, stack)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
            # Opened for writing, too: else it would be at its end whenever a gateway has closed it.
            self._handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._stack = stack
            asyncio.get_running_loop().add_reader(self._handle, self._read)

    def close(self) -> None:
        if self._handle is not None:
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
            self._handle = None

    def _read(self) -> None:
        assert self._handle is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._handle, 4096)
        self._rung()


def bell_file(home: Home, stack: str) -> Path:
    return home.root / "watch" / f"{stack}.bell"
