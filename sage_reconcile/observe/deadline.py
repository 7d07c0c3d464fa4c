"""Blocking calls with a deadline, for what may hang in the kernel or in a driver."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
V = TypeVar("V")


class Deadline(Generic[T]):
    """Runs `call` in a thread of its own and waits `seconds` at most; `what` names it in messages.

    Threads are daemons: one that hangs must not keep the program from ending, as a pool's would. While one
    hangs no second one is started, so that looking again and again does not pile them up.
    """

    def __init__(self, what: str, seconds: float, call: Callable[[], T]) -> None:
        self.what = what
        self.seconds = seconds
        self.call = call
        self._running: threading.Thread | None = None

    async def __call__(self) -> T:
        """The result, or what `call` raised; TimeoutError when it takes too long, or still hangs."""
        if self._running is not None and self._running.is_alive():
            raise TimeoutError(f"{self.what} still does not answer since an earlier look")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._running = threading.Thread(
            target=self._run, args=(loop, done), name=f"look at {self.what}", daemon=True
        )
        self._running.start()
        try:
            async with asyncio.timeout(self.seconds):
                return await done
        except TimeoutError:
            if done.done() and not done.cancelled():
                raise  # the call's own
            raise TimeoutError(f"{self.what} gave no answer within {self.seconds:g} s") from None

    def _run(self, loop: asyncio.AbstractEventLoop, done: "asyncio.Future[T]") -> None:
        try:
            result = self.call()
        except Exception as error:  # noqa: BLE001 - it is raised again in the one who waits
            _tell(loop, done, done.set_exception, error)
        else:
            _tell(loop, done, done.set_result, result)


def _tell(
    loop: asyncio.AbstractEventLoop, done: "asyncio.Future[T]", settle: Callable[[V], None], value: V
) -> None:
    def deliver() -> None:
        if not done.done():  # else nobody waits any more
            settle(value)

    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(deliver)
