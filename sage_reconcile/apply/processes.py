"""Ends processes, and only those that prove at that moment to be of the launch. Linux; standard library."""

import contextlib
import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for good: pids are used again, but not with the same start (clock ticks since boot)."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class _Process:
    identity: Identity
    parent: int
    session: int
    uid: int
    launch: str | None
    home: str | None
    is_supervisor: bool


class Members:
    """Who belongs to one launch of one SAGE_HOME.

    Proofs: its mark, which names this home, on a process of this user; the session that its supervisor led;
    descent from one of those. `session` is the supervisor's pid: the session counts while its leader is that
    supervisor, or is gone; a session with another living leader is somebody's terminal. Whoever was once
    found stays known by pid and start time, also when it has lost its parents.
    """

    def __init__(self, launch: str, home: str, session: int | None) -> None:
        self._launch = launch
        self._home = home
        self._session = session
        self._known: set[Identity] = set()

    def look(self) -> list[Identity]:
        """Everybody of the launch who lives now, this process left out."""
        table = _table()
        found = self._proved(table)
        children: dict[int, list[_Process]] = defaultdict(list)
        for process in table.values():
            children[process.parent].append(process)
        waiting = list(found)
        while waiting:
            for child in children[waiting.pop()]:
                pid = child.identity.pid
                if pid not in found and child.launch in (None, self._launch) and child.uid == os.getuid():
                    found.add(pid)
                    waiting.append(pid)
        found.discard(os.getpid())
        self._known |= {table[pid].identity for pid in found}
        alive = {process.identity for process in table.values()}
        return sorted(self._known & alive, key=lambda one: one.pid)

    def _proved(self, table: dict[int, _Process]) -> set[int]:
        ours = {pid for pid, process in table.items() if process.uid == os.getuid()}
        marked = {pid for pid in ours if self._is_marked(table[pid])}
        leader = table.get(self._session) if self._session is not None else None
        if self._session is None or (leader is not None and not self._is_our_supervisor(leader)):
            return marked
        in_session = {pid for pid in ours if table[pid].session == self._session}
        return marked | {pid for pid in in_session if table[pid].launch in (None, self._launch)}

    def _is_marked(self, process: _Process) -> bool:
        return process.launch == self._launch and process.home == self._home

    def _is_our_supervisor(self, process: _Process) -> bool:
        return process.is_supervisor and self._is_marked(process)


def is_supervisor(pid: int, launch: str, home: str) -> bool:
    """Whether this process, now, is the live supervisor of the launch: its own environment says so."""
    process = _read(pid)
    return process is not None and process.is_supervisor and (process.launch, process.home) == (launch, home)


def send_to_supervisor(pid: int, launch: str, home: str, number: signal.Signals) -> bool:
    """Signals the supervisor if the process still is it; a pidfd keeps a reused id from being hit."""
    with contextlib.suppress(OSError), _handle(pid) as handle:
        if is_supervisor(pid, launch, home):
            signal.pidfd_send_signal(handle.fileno, number)
            return True
    return False


def kill(processes: Iterable[Identity]) -> None:
    """SIGKILL for each that still is the process that was found."""
    for one in processes:
        with contextlib.suppress(OSError), _handle(one.pid) as handle:
            process = _read(one.pid)
            if process is not None and process.identity == one:
                signal.pidfd_send_signal(handle.fileno, signal.SIGKILL)


class _handle:
    """A pidfd, closed at the end. Raises OSError when there is no such process."""

    def __init__(self, pid: int) -> None:
        self.fileno = os.pidfd_open(pid)

    def __enter__(self) -> "_handle":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fileno)


def _table() -> dict[int, _Process]:
    found = (_read(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.identity.pid: process for process in found if process is not None}


def _read(pid: int) -> _Process | None:
    """The process, None when it is gone or a zombie. Its environment may be closed to us: then no mark."""
    folder = Path(f"/proc/{pid}")
    try:
        fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        uid = folder.stat().st_uid
    except OSError:
        return None
    if fields[0] in ("Z", "X", "x"):
        return None
    environment: dict[bytes, bytes] = {}
    with contextlib.suppress(OSError):
        raw = (folder / "environ").read_bytes()
        environment = dict(entry.split(b"=", 1) for entry in raw.split(b"\0") if b"=" in entry)
    launch, home = _mark(environment.get(b"SAGE_LAUNCH", b""))
    is_supervisor = environment.get(b"SAGE_ROLE") == b"supervisor"
    identity = Identity(pid, int(fields[19]))
    return _Process(identity, int(fields[1]), int(fields[3]), uid, launch, home, is_supervisor)


def _mark(raw: bytes) -> tuple[str | None, str | None]:
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        found = json.loads(raw) if raw else {}
        return (str(found["launch"]), str(found["home"])) if found else (None, None)
    return None, None
