"""The numbers of all workers of one gateway, though a scrape reaches one of them.

Each worker leaves its numbers in `$SAGE_HOME/run/gateway/metrics/<gateway>/<worker>.json`, both named by pid
and start time. A scrape adds the files of the others to what it counts itself, also those of workers that
have ended: no counter goes down when a worker is replaced. The files of ended workers are folded into one, so
that a worker that crashes every minute leaves no more than that.
"""

import fcntl
import logging
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.identity import Usage, is_alive, name_of, usage_of
from gateway.meters import GAP_BOUNDS, KEEP_S, LATENCY_BOUNDS, Meters, Numbers
from sage_reconcile.version import __version__

logger = logging.getLogger("gateway")

WRITE_S = 1.0
METERS_PER_SECOND = 250
FOLD_S = 60.0
# How many names of folded workers are remembered: a scrape under way may still have read their own files.
REMEMBERED = 64
MOST_TOLD = 20
_FOLDED = "ended"
# Numbers of another layout are not added up.
LAYOUT = f"{__version__}-{zlib.crc32(repr((LATENCY_BOUNDS, GAP_BOUNDS)).encode()):08x}"


@dataclass(slots=True)
class Snapshot:
    """One file. `folded` names the ended workers whose numbers are in it."""

    layout: str = LAYOUT
    folded: list[str] = field(default_factory=list)
    numbers: Numbers = field(default_factory=Numbers)


@dataclass(slots=True)
class Total:
    """The sum over all workers of this gateway, and what each living one takes. No longer changed by them."""

    numbers: Numbers = field(default_factory=Numbers)
    workers: list[Usage] = field(default_factory=list)


class Snapshots:
    """The numbers of this worker on disk, and those of the others. `folder` is run/gateway/metrics.

    Nothing here raises: numbers that cannot be written or read are missing in a scrape, and the log says so
    once. `now` is monotonic everywhere.
    """

    def __init__(self, folder: Path, meters: Meters, gateway: int = 0) -> None:
        """`gateway` is the pid that all workers have in common, if not that of multiprocessing's parent."""
        parent = multiprocessing.parent_process()
        shared = gateway or (parent.pid if parent else None) or os.getpid()
        self._root = folder
        self._folder = folder / (name_of(shared) or str(shared))
        self._name = name_of(os.getpid())
        self._meters = meters
        self._written = b""
        self._write_at = 0.0
        self._fold_at = 0.0
        self._told: set[str] = set()

    def start(self) -> None:
        """Removes what gateways left that are gone."""
        if self._root.is_dir():
            for folder in self._root.iterdir():
                if not is_alive(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)

    def write(self, now: float, at_once: bool = False) -> None:
        """Replaces this worker's file, if the last time was a second ago and something else is to be said.

        Once more, `at_once`, before the worker ends.
        """
        if now < self._write_at and not at_once:
            return
        numbers = self._meters.numbers
        # A thousand meters take several milliseconds to write, in which nothing else happens here.
        many = (len(numbers.routes) + len(numbers.backends)) // METERS_PER_SECOND
        self._write_at = now + WRITE_S * (1 + many)
        if now >= self._fold_at:
            self._fold_at = now + FOLD_S
            self._meters.mark(numbers, now)
            self._fold(now)
        data = msgspec.json.encode(Snapshot(numbers=numbers))
        path = self._path(self._name)
        if data != self._written or not path.exists():
            self._written = data if self._replace(path, data) else b""

    def total(self, now: float) -> Total:
        """What all workers counted, on disk before it is told: if this worker dies, no later sum is less."""
        self.write(now, at_once=True)
        total = Total()
        total.numbers.add(self._meters.numbers, gauges=True)
        others = [(name, is_alive(name), self._read(name)) for name in self._names() if name != self._name]
        # After the others: what was folded meanwhile is in here, and what is in here is not counted again.
        ended = self._read(_FOLDED) or Snapshot()
        for name, alive, snapshot in others:
            if snapshot is not None and name not in ended.folded:
                total.numbers.add(snapshot.numbers, gauges=alive)
        total.numbers.add(ended.numbers, gauges=False)
        total.numbers.forget(now - KEEP_S)
        living = sorted([os.getpid(), *(_pid(name) for name, alive, _ in others if alive)])
        total.workers = [usage for usage in map(usage_of, living) if usage is not None]
        return total

    def _fold(self, now: float) -> None:
        """Moves the numbers of ended workers into the one file that holds them."""
        with self._alone() as is_alone:
            if not is_alone:
                return
            ended = self._read(_FOLDED) or Snapshot()
            gone = [name for name in self._names() if not is_alive(name)]
            fresh = [name for name in gone if name not in ended.folded]
            for name in fresh:
                snapshot = self._read(name)
                if snapshot is not None:
                    ended.numbers.add(snapshot.numbers, gauges=False)
            ended.folded = list(dict.fromkeys([*ended.folded[-REMEMBERED:], *gone]))
            self._meters.mark(ended.numbers, now)
            path = self._path(_FOLDED)
            if (fresh or path.exists()) and self._replace(path, msgspec.json.encode(ended)):
                for name in gone:
                    self._path(name).unlink(missing_ok=True)
            # What a worker was writing when it was killed.
            for partial in self._folder.glob("*.partial"):
                if not is_alive(partial.name.split(".")[-2]):
                    partial.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this worker may fold now: one at a time, and nobody waits for another one."""
        try:
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield False
            return
        try:
            yield _is_locked(lock)
        finally:
            os.close(lock)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _names(self) -> list[str]:
        """The workers that left a file, the folded ones aside."""
        try:
            return sorted(path.stem for path in self._folder.glob("*.json") if path.stem != _FOLDED)
        except OSError:
            return []

    def _read(self, name: str) -> Snapshot | None:
        """What a worker left, or None if that cannot be used."""
        try:
            snapshot = msgspec.json.decode(self._path(name).read_bytes(), type=Snapshot)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            self._tell(f"cannot read the numbers of worker {name}: {error}")
            return None
        # Of a sage that was upgraded under its running gateway: its histograms may be other ones.
        return snapshot if snapshot.layout == LAYOUT else None

    def _replace(self, path: Path, data: bytes) -> bool:
        partial = path.with_suffix(f".{self._name}.partial")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            self._tell(f"cannot write {path}: {error.strerror}; scrapes of other workers miss its numbers")
            return False
        return True

    def _tell(self, fault: str) -> None:
        if fault not in self._told and len(self._told) < MOST_TOLD:
            self._told.add(fault)
            logger.error("%s", fault)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _pid(name: str) -> int:
    return int(name.partition("-")[0])
