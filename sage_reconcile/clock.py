"""The time that a watcher goes by."""

import asyncio
from typing import Protocol


class Clock(Protocol):
    """Time, so that tests need not wait."""

    def now(self) -> float: ...

    async def wait(self, seconds: float, stop: asyncio.Event) -> None:
        """Returns after `seconds`, or as soon as `stop` is set."""
        ...


class SystemClock:
    """The monotonic clock of this machine."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def wait(self, seconds: float, stop: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            return
