"""What supervisors wrote down about their launches. Observations: missing or broken ones are no fault."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sage_reconcile.home import WOKEN, Home
from sage_reconcile.model import codec
from sage_reconcile.model.desired import LiveSpec, ReplicaId
from sage_reconcile.model.observed import LOST, Health, LastExit, Mark
from sage_reconcile.model.routing import RoutingTable
from sage_reconcile.supervisor import tree
from sage_reconcile.supervisor.regular import read_regular

T = TypeVar("T")

DEPTH = 3
"""Folders below the run directory: of a stack, a replica, a launch."""

HEALTH = {
    "starting": Health.STARTING,
    "ready": Health.READY,
    "failing": Health.FAILING,
    "backoff": Health.BACKOFF,
    "stopping": Health.EXITED,
    "exited": Health.EXITED,
}


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process as the supervisor knew it; `started` in epoch seconds."""

    pid: int
    started: float


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """launch.json. Times in epoch seconds.

    `since_up` is `since` in seconds after the boot named `boot`: no setting of the wall clock changes it.
    """

    mark: Mark
    supervisor: ProcessRef
    state: str
    since: float
    live: LiveSpec
    engine: ProcessRef | None = None
    ready_at: float | None = None
    restarts: int = 0
    message: str = ""
    next_attempt_at: float | None = None
    since_up: float = 0.0
    boot: str = ""
    version: int = 1

    @property
    def health(self) -> Health:
        return HEALTH.get(self.state, Health.UNKNOWN)


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """exit.json: how the process `pid` of the launch `launch` ended, `up` seconds after boot."""

    at: float
    launch: str
    pid: int | None
    code: int | None
    signal: int | None
    was_ready: bool
    cause: str = ""
    hint: str = ""
    tail: tuple[str, ...] = ()
    said: str = ""
    up: float = 0.0
    version: int = 1

    @property
    def last_exit(self) -> LastExit:
        return LastExit(
            self.at, self.code, self.signal, self.was_ready, self.cause, self.hint, self.tail, self.said
        )


def read_launch(home: Home, mark: Mark) -> LaunchRecord | None:
    """The record of this very launch; None when missing, broken, or of another launch."""
    record = _read(launch_dir(home, mark) / "launch.json", LaunchRecord)
    return record if record is not None and record.mark.launch == mark.launch else None


def read_exit(home: Home, mark: Mark) -> LastExit | None:
    """How the last process of this launch ended, None when none did."""
    record = _read(launch_dir(home, mark) / "exit.json", ExitRecord)
    return record.last_exit if record is not None and record.launch == mark.launch else None


def woken_at(home: Home, mark: Mark) -> float:
    """When the launch was woken last; 0.0 where it never was."""
    try:
        return (launch_dir(home, mark) / WOKEN).stat().st_mtime
    except OSError:
        return 0.0


def launch_dir(home: Home, mark: Mark) -> Path:
    replica = mark.replica
    return home.launch_dir(replica.stack, replica.engine, replica.replica, mark.launch)


def all_launches(home: Home) -> Iterator[LaunchRecord]:
    """Every launch record that can be read, of launches that live and of such as have ended."""
    for _, directory in _replicas(home):
        for launch in _folders(directory):
            record = _read(launch / "launch.json", LaunchRecord)
            if record is not None and record.mark.launch == launch.name:
                yield record


def unreadable(home: Home) -> str:
    """What of the run directory may not be read, and why, in words; "" where all of it may."""
    waiting = [home.run]
    for folder in waiting:
        try:
            entries = [entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{folder} cannot be read: {error.strerror}"
        if len(folder.relative_to(home.run).parts) < DEPTH:
            waiting += [Path(entry.path) for entry in entries]
    return ""


def last_exits(home: Home, stack: str | None = None) -> tuple[tuple[ReplicaId, LastExit], ...]:
    """The newest exit of each replica of the stack, or of all stacks, sorted by replica."""
    newest: dict[ReplicaId, tuple[_Order, LastExit]] = {}
    boot = tree.boot_id()
    for replica, directory in _replicas(home):
        if stack is not None and replica.stack != stack:
            continue
        for launch in _folders(directory):
            found = _end(launch, boot)
            if found is not None and (replica not in newest or newest[replica][0] < found[0]):
                newest[replica] = found
    return tuple(sorted((replica, end) for replica, (_, end) in newest.items()))


_Order = tuple[bool, float, float]
"""What sorts ends: those of this boot last, by seconds since boot; others by the wall clock."""


def _end(launch: Path, boot: str) -> tuple[_Order, LastExit] | None:
    """How the launch ended, and when: as its supervisor wrote, unless that ended itself before it could."""
    written = _read(launch / "exit.json", ExitRecord)
    record = _read(launch / "launch.json", LaunchRecord)
    if record is None:
        return ((False, 0.0, written.at), written.last_exit) if written is not None else None
    is_now = bool(boot) and record.boot == boot
    is_told = written is not None and (
        written.up >= record.since_up if written.up and record.since_up else written.at >= record.since
    )
    if (
        record.state == "exited"
        or is_told
        or tree.is_running(record.supervisor.pid, record.supervisor.started)
    ):
        if written is None:
            return None
        end = replace(written.last_exit, fingerprint=record.mark.fingerprint)
        return (is_now, written.up, written.at), end
    lost = LastExit(record.since, None, None, record.ready_at is not None, LOST)
    return (is_now, record.since_up, record.since), lost


def prune(home: Home, alive: Collection[str], keep: int = 3) -> tuple[Path, ...]:
    """Removes folders of old launches, but for those in `alive` (launch ids) and the newest `keep` a replica.

    Returns what was removed. A folder that cannot be removed stays for the next time.
    """
    removed = []
    for _, directory in _replicas(home):
        launches = sorted(
            _folders(directory), key=lambda folder: (_changed(folder), folder.name), reverse=True
        )
        ended = [folder for folder in launches if folder.name not in alive]
        for folder in ended[keep:]:
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                removed.append(folder)
    return tuple(removed)


def read_routing(home: Home) -> RoutingTable | None:
    """The table that the gateway is told now; None when missing or broken."""
    return _read(home.routing_file, RoutingTable)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        value = codec.decode(read_regular(path), kind)
    except (OSError, ValueError, RecursionError):
        return None
    return value if getattr(value, "version", None) == 1 else None


def _replicas(home: Home) -> Iterator[tuple[ReplicaId, Path]]:
    """run/<stack>/<engine>.<replica>; an engine's name may hold dots itself."""
    for stack in _folders(home.run):
        for directory in _folders(stack):
            engine, _, number = directory.name.rpartition(".")
            if engine and number.isdecimal():
                yield ReplicaId(stack.name, engine, int(number)), directory


def _folders(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink())
    return []


def _changed(path: Path) -> float:
    """When a record in the folder was last replaced."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
