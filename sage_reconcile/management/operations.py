"""Operations: what takes time, one after the other, followed by whoever wants to.

They are kept in memory and for a while only: an operation is no truth about anything, GET engines is.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from sage_reconcile.control.edits import Work
from sage_reconcile.errors import ReconcileError
from sage_reconcile.model.management import Action, EngineInfo, Event, Operation

KEPT = 256
"""Operations that have ended are remembered up to this number."""

MOST_RUNNING = 64
MOST_EVENTS = 500

Perform = Callable[[Work], Awaitable[list[EngineInfo]]]
"""Does it; gives the engines that it was about, as they are then."""


class TooManyError(ReconcileError):
    """As many operations run already as may."""


@dataclass(slots=True)
class _Running:
    """An operation as it goes."""

    id: str
    action: Action
    engine_id: str
    created_at: float
    work: Work = field(default_factory=Work)
    events: list[Event] = field(default_factory=list)
    engines: list[EngineInfo] = field(default_factory=list)
    finished_at: float | None = None
    error: ReconcileError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    @property
    def told(self) -> Operation:
        is_over = self.finished_at is not None
        return Operation(
            id=self.id,
            action=self.action,
            engine_id=self.engine_id,
            state=("failed" if self.error else "done") if is_over else "running",
            created_at=self.created_at,
            finished_at=self.finished_at,
            events=list(self.events),
            error=str(self.error or ""),
            engines=list(self.engines),
        )


class Operations:
    """All of this process. The lock of appliers makes them take turns; a stop without drain does not wait."""

    def __init__(self) -> None:
        self._known: dict[str, _Running] = {}

    @property
    def is_idle(self) -> bool:
        return all(one.finished_at is not None for one in self._known.values())

    def begin(self, action: Action, engine_id: str, perform: Perform) -> str:
        """Begins it; its id. Raises TooManyError."""
        if sum(one.finished_at is None for one in self._known.values()) >= MOST_RUNNING:
            raise TooManyError(f"{MOST_RUNNING} operations run already; try again when some have ended")
        over = [one.id for one in self._known.values() if one.finished_at is not None]
        for old in over[: max(0, len(over) - KEPT)]:
            del self._known[old]
        one = _Running(f"op-{secrets.token_hex(8)}", action, engine_id, time.time())
        loop = asyncio.get_running_loop()

        def say(text: str) -> None:
            # Also from the thread that waits for the lock.
            loop.call_soon_threadsafe(_note, one, text)

        one.work.say = say
        self._known[one.id] = one
        one.task = asyncio.create_task(_run(one, perform))
        return one.id

    def get(self, id: str) -> Operation | None:
        one = self._known.get(id)
        return one.told if one else None

    async def wait(self, id: str) -> tuple[Operation, ReconcileError | None]:
        """The operation once it has ended, and what went wrong."""
        one = self._known[id]
        async for _ in self.follow(id):
            pass
        return one.told, one.error

    async def follow(self, id: str) -> AsyncIterator[Event]:
        """Its events from the first, as they come; ends with the operation."""
        one = self._known[id]
        told = 0
        while True:
            changed = one.changed
            while told < len(one.events):
                yield one.events[told]
                told += 1
            if one.finished_at is not None:
                return
            await changed.wait()

    async def close(self) -> None:
        """Begins nothing new; engines that load go on by themselves."""
        running = [one for one in self._known.values() if one.task and not one.task.done()]
        for one in running:
            one.work.cancel()
        tasks = [one.task for one in running if one.task]
        if tasks:
            await asyncio.wait(tasks)


async def _run(one: _Running, perform: Perform) -> None:
    try:
        one.engines = await perform(one.work)
    except ReconcileError as error:
        one.error = error
    except Exception as error:  # noqa: BLE001 - a defect of sage ends this operation, not the process
        one.error = ReconcileError(f"a fault of sage itself: {type(error).__name__}: {error}")
    finally:
        # What was said last comes by the loop, too.
        await asyncio.sleep(0)
        one.finished_at = time.time()
        _wake(one)


def _note(one: _Running, text: str) -> None:
    if len(one.events) < MOST_EVENTS:
        one.events.append(Event(len(one.events) + 1, time.time(), text))
        _wake(one)


def _wake(one: _Running) -> None:
    changed, one.changed = one.changed, asyncio.Event()
    changed.set()
