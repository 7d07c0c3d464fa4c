"""Which engines on demand are asked for, told to whoever reconciles their stack.

Each worker keeps `$SAGE_HOME/run/gateway/demand/<worker>.json` with the requests that it holds for them, has
with them, and when it last had one: state, not news, so that a lost signal costs a moment only. The signal is
a byte into the pipe `$SAGE_HOME/watch/<stack>.bell`, which a watcher of that stack reads; that nobody reads
it is how it is known that there is none. Nothing here happens per request: only when one is held, and by the
tick.
"""

import contextlib
import errno
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.identity import is_alive, name_of

if TYPE_CHECKING:
    from gateway.fleet import Fleet
    from gateway.waiting import Waiting

logger = logging.getLogger("gateway")

# The least time between two files for the sake of who waits, and for the sake of who was used.
WRITE_WAITING_S = 0.02
WRITE_USED_S = 1.0
PRECISION_S = 0.25
# How long requests wait for a watcher to come (again) where there is none.
FORSAKEN_S = 10.0
# How often it is looked whether there is one.
LOOK_S = 0.5


class Told(msgspec.Struct):
    """One engine. Times in Unix seconds, 0.0 for never; some request has been held ever `since`."""

    stack: str
    engine: str
    waiting: int = 0
    since: float = 0.0
    in_flight: int = 0
    last: float = 0.0


class DemandTold:
    """What this worker tells. `now` is monotonic everywhere."""

    def __init__(self, home: Path, fleet: "Fleet", waiting: "Waiting") -> None:
        self._folder = home / "run" / "gateway" / "demand"
        self._bells = home / "watch"
        self._path = self._folder / f"{name_of(os.getpid())}.json"
        self._fleet = fleet
        self._waiting = waiting
        self._last: dict[tuple[str, str], float] = {}
        self._since: dict[tuple[str, str], float] = {}
        self._written: list[Told] = []
        self._looked = self._write_at = 0.0
        self._forsaken_since: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}
        self._fault = ""

    @property
    def is_waited_for(self) -> bool:
        """Whether requests are held for an engine on demand."""
        return any(told.waiting for told in self._written)

    def start(self) -> None:
        """Takes over what ended workers knew of the last uses, and removes their files."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if is_alive(path.stem):
                    continue
                with contextlib.suppress(OSError, ValueError):
                    for told in msgspec.json.decode(path.read_bytes(), type=list[Told]):
                        key = told.stack, told.engine
                        self._last[key] = max(told.last, self._last.get(key, 0.0))
                path.unlink(missing_ok=True)

    def ask(self, now: float) -> None:
        """A request was just held: told at once, unless something was told just now."""
        if now >= self._looked + WRITE_WAITING_S:
            self.tick(now)

    def tick(self, now: float, at_once: bool = False) -> None:
        """Tells what has changed, as often as may be."""
        self._looked = now
        if not self._fleet.on_demand:
            self._written = []
            return
        told = self._now(now)
        before = {(one.stack, one.engine): one.since for one in self._written}
        turned = [one for one in told if one.since != before.get((one.stack, one.engine), 0.0)]
        pause = WRITE_WAITING_S if turned else WRITE_USED_S
        is_news = told != self._written or not self._path.exists()
        if is_news and (at_once or now >= self._write_at + pause):
            self._write_at = now
            self._write(told)
            for stack in {one.stack for one in turned if one.waiting}:
                self._ring(stack, now)

    def is_forsaken(self, stack: str, now: float) -> bool:
        """Whether for a while now nobody has been there to load an engine of the stack."""
        if now >= self._looked_at.get(stack, 0.0) + LOOK_S:
            self._ring(stack, now)
        if now < self._forsaken_since.get(stack, now) + FORSAKEN_S:
            return False
        self._ring(stack, now)  # before anybody is turned away
        return stack in self._forsaken_since

    def _now(self, now: float) -> list[Told]:
        clock = time.time()
        plans = self._fleet.on_demand
        found = {key: Told(*key) for key in sorted({(p.route.stack, p.route.on_demand) for p in plans})}
        for member in {member for plan in plans for member in plan.pool.members}:
            told = found.get((member.backend.stack, member.backend.engine))
            if told is not None:
                told.in_flight += member.in_flight
                if member.in_flight:
                    self._used(told, clock)
                elif member.heard_at:
                    self._used(told, clock - now + member.heard_at)
        for exchange in self._waiting.held:
            route = exchange.plan.route if exchange.plan else None
            told = found.get((route.stack, route.on_demand)) if route is not None else None
            if told is not None:
                told.waiting += 1
        for key, told in found.items():
            if told.waiting:
                told.since = self._since.setdefault(key, round(clock, 3))
                self._used(told, clock)
            else:
                self._since.pop(key, None)
            told.last = self._last.get(key, 0.0)
        return list(found.values())

    def _used(self, told: Told, at: float) -> None:
        """Notes the last use. The two clocks differ by never quite the same: not every millisecond counts."""
        key = told.stack, told.engine
        if at > self._last.get(key, 0.0) + PRECISION_S:
            self._last[key] = round(at, 3)

    def _write(self, told: list[Told]) -> None:
        path = self._path
        partial = path.with_suffix(".partial")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(told))
            partial.replace(path)
        except OSError as error:
            fault = f"cannot write {path}: {error.strerror}; engines on demand are not loaded"
            if fault != self._fault:
                logger.error("%s", fault)
            self._fault = fault
        else:
            self._written, self._fault = told, ""

    def _ring(self, stack: str, now: float) -> None:
        """Wakes the watchers of the stack; notes whether there are any."""
        self._looked_at[stack] = now
        try:
            bell = os.open(self._bells / f"{stack}.bell", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                self._forsaken_since.setdefault(stack, now)
            return
        self._forsaken_since.pop(stack, None)
        with contextlib.suppress(OSError):  # full: the watcher has been woken often enough
            os.write(bell, b"\n")
        os.close(bell)
