"""Hands that tell how long an engine took to sleep, to wake, to stop: what the next plan can promise."""

import time
from collections.abc import Awaitable, Callable

from sage_reconcile.apply.hands import Hands, Started
from sage_reconcile.model.actions import Launch
from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import LiveSpec
from sage_reconcile.model.observed import Health, Mark, ObservedLaunch, Orphan

Note = Callable[[Mark, str, float], Awaitable[None]]
"""Is told of a launch that it did something ("sleep", "wake", "stop") in so many seconds. Must not raise."""


class TimedHands:
    """Other hands, and a clock beside them. Told is what went well, and stops of what had served."""

    def __init__(self, hands: Hands, note: Note, clock: Callable[[], float] = time.monotonic) -> None:
        self._hands = hands
        self._note = note
        self._clock = clock

    async def prepare(self, order: Launch) -> None:
        await self._hands.prepare(order)

    async def launch(self, order: Launch) -> Started:
        return await self._hands.launch(order)

    async def await_ready(self, launch: Started | ObservedLaunch, timeout: float) -> None:
        await self._hands.await_ready(launch, timeout)

    async def drain(self, launch: ObservedLaunch, timeout: float) -> bool:
        return await self._hands.drain(launch, timeout)

    async def stop(self, launch: Started | ObservedLaunch, drain: float) -> None:
        begun = self._clock()
        await self._hands.stop(launch, drain)
        if isinstance(launch, ObservedLaunch) and launch.health in (Health.READY, Health.ASLEEP):
            await self._note(launch.mark, "stop", self._clock() - begun)

    async def reap(self, orphan: Orphan) -> None:
        await self._hands.reap(orphan)

    async def update_live(self, launch: ObservedLaunch, live: LiveSpec) -> None:
        await self._hands.update_live(launch, live)

    async def sleep(self, launch: Started | ObservedLaunch) -> None:
        begun = self._clock()
        await self._hands.sleep(launch)
        await self._note(launch.mark, "sleep", self._clock() - begun)

    async def wake(self, launch: ObservedLaunch) -> None:
        begun = self._clock()
        await self._hands.wake(launch)
        await self._note(launch.mark, "wake", self._clock() - begun)

    async def load_adapter(self, launch: Started | ObservedLaunch, adapter: Adapter) -> None:
        await self._hands.load_adapter(launch, adapter)

    async def unload_adapter(self, launch: ObservedLaunch, adapter: Adapter) -> None:
        await self._hands.unload_adapter(launch, adapter)

    def last_line(self, launch: Started | ObservedLaunch) -> str:
        return self._hands.last_line(launch)
