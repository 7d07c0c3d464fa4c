"""Launches as the process table shows them: marks, sessions, descent. The only importer of psutil.

This is the truth about what runs: it needs no file of ours.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sage_reconcile.home import Home, user_name
from sage_reconcile.model import codec
from sage_reconcile.model.observed import ForeignLaunch, Mark, Orphan, PortHolder
from sage_reconcile.observe import records
from sage_reconcile.observe.ports import listening
from sage_reconcile.supervisor.tree import boot_id

MARK_VARIABLE = b"SAGE_LAUNCH"
ROLE_VARIABLE = b"SAGE_ROLE"
MARK_VERSION = 1
DEAD = frozenset({b"Z", b"X", b"x"})
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One live process. Pids are used again: (pid, started) is its identity; `started` in epoch seconds."""

    pid: int
    started: float
    parent: int
    session: int
    uid: int
    mark: str = ""
    is_supervisor: bool = False


@dataclass(frozen=True, slots=True)
class LiveLaunch:
    """A launch of ours; `engine` is the supervisor's first child, None between restarts."""

    mark: Mark
    supervisor: Process
    members: tuple[Process, ...]
    engine: Process | None

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(member.pid for member in self.members)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A process of ours whose mark cannot be read, as one of another version of sage."""

    pid: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProcessTable:
    """One pass over the process table. `ports` is None, with `ports_error`, when they could not be read."""

    live: tuple[LiveLaunch, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    foreign: tuple[ForeignLaunch, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    pids: frozenset[int] = frozenset()
    ports: tuple[PortHolder, ...] | None = ()
    ports_error: str = ""
    boot_id: str = ""


def scan(home: Home) -> ProcessTable:
    """Every launch on this host, the listening TCP ports and the boot id. Raises OSError without a /proc."""
    processes = _read_all()
    groups, unreadable = _grouped(processes.values(), str(home.root))
    family = _Family(processes)
    sessions = _join_sessions(home, family, groups, processes)
    live: list[LiveLaunch] = []
    orphans: list[Orphan] = []
    foreign: list[ForeignLaunch] = []
    for (uid, owner, _), (mark, marked) in groups.items():
        supervisor = _supervisor(marked)
        members = family.of(marked, supervisor)
        if uid != os.getuid() or owner != str(home.root):
            foreign.append(ForeignLaunch(mark, tuple(m.pid for m in members), user_name(uid)))
        elif supervisor is None:
            orphans.append(Orphan(mark, tuple(m.pid for m in members), session=sessions.get(mark.launch)))
        else:
            live.append(LiveLaunch(mark, supervisor, members, _engine(supervisor, members)))
    ports, ports_error = listening()
    return ProcessTable(
        live=tuple(sorted(live, key=lambda launch: launch.mark.id)),
        orphans=tuple(sorted(orphans, key=lambda orphan: orphan.mark.id)),
        foreign=tuple(sorted(foreign, key=lambda launch: (launch.user, launch.mark.home, launch.mark.id))),
        unreadable=tuple(unreadable),
        pids=frozenset(processes),
        ports=ports,
        ports_error=ports_error,
        boot_id=boot_id(),
    )


def _join_sessions(
    home: Home, family: "_Family", groups: "Groups", processes: dict[int, Process]
) -> dict[str, int]:
    """Adds to `groups` what lost its mark but is of the session of a supervisor of ours that is gone: no
    process can get that session id while it has members. Returns the sessions by launch id."""
    sessions = {}
    for record in records.all_launches(home):
        leader, key = record.supervisor, (os.getuid(), str(home.root), record.mark.launch)
        if leader.pid in processes or record.mark.home != str(home.root):
            continue
        after = leader.started - 1.0
        own = (
            p for p in family.sessions[leader.pid] if p.uid == key[0] and not p.mark and p.started >= after
        )
        if (members := list(own)) or key in groups:
            groups.setdefault(key, (record.mark, []))[1].extend(members)
            sessions[record.mark.launch] = leader.pid
    return sessions


def _read_all() -> dict[int, Process]:
    """Straight from /proc, two small files a process: psutil takes several times as long for the same."""
    booted = psutil.boot_time()
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            process = _read(Path("/proc", name), booted)
        except (OSError, ValueError, IndexError):
            continue  # it ended while it was looked at
        if process is not None:
            found[process.pid] = process
    return found


def _read(proc: Path, booted: float) -> Process | None:
    """The process, None for a zombie. The environment of others is there for root only."""
    stat = (proc / "stat").read_bytes()
    # The name, in parentheses, may itself hold spaces and parentheses.
    state, parent, _, session, *rest = stat.rpartition(b")")[2].split()
    if state in DEAD:
        return None
    try:
        environ = (proc / "environ").read_bytes()
    except OSError:
        environ = b""  # without a mark it can still be a member, by session or descent
    mark = _variable(environ, MARK_VARIABLE)
    return Process(
        pid=int(proc.name),
        started=booted + int(rest[15]) / CLOCK_TICKS,
        parent=int(parent),
        session=int(session),
        uid=_real_uid(proc) if mark else proc.stat().st_uid,
        mark=mark,
        is_supervisor=bool(mark) and _variable(environ, ROLE_VARIABLE) == "supervisor",
    )


def _variable(environ: bytes, name: bytes) -> str:
    if name not in environ:
        return ""
    found = (entry[len(name) + 1 :] for entry in environ.split(b"\0") if entry.startswith(name + b"="))
    return next(found, b"").decode(errors="replace")


def _real_uid(proc: Path) -> int:
    """Whose process it is. The owner of its folder may be root instead: where dumping is not allowed."""
    status = (proc / "status").read_bytes()
    return int(status.partition(b"\nUid:")[2].split(maxsplit=1)[0])


Groups = dict[tuple[int, str, str], tuple[Mark, list[Process]]]


def _grouped(processes: Iterable[Process], home: str) -> tuple[Groups, list[Unreadable]]:
    """Marked processes by (uid, home, launch id): a mark that somebody else copied is not ours."""
    groups: Groups = {}
    unreadable: list[Unreadable] = []
    decoded: dict[str, Mark | ValueError] = {}
    for process in processes:
        if not process.mark:
            continue
        if process.mark not in decoded:
            decoded[process.mark] = _decoded(process.mark)
        mark = decoded[process.mark]
        if isinstance(mark, Mark):
            groups.setdefault((process.uid, mark.home, mark.launch), (mark, []))[1].append(process)
        elif process.uid == os.getuid() and (note := _note(process, mark, home)):
            unreadable.append(note)
    return groups, unreadable


def _decoded(raw: str) -> Mark | ValueError:
    try:
        mark = codec.decode(raw, Mark)
    except ValueError as error:
        return error
    if mark.version != MARK_VERSION:
        return ValueError(f"its version is {mark.version}, this sage reads {MARK_VERSION}")
    return mark


def _note(process: Process, error: ValueError, home: str) -> Unreadable | None:
    """None unless the mark, as far as it can be read, is this home's: others are none of our business."""
    try:
        plain = json.loads(process.mark)
    except ValueError:
        plain = {"home": home} if home in process.mark else None
    if not isinstance(plain, dict) or plain.get("home") != home:
        return None
    return Unreadable(
        process.pid, f"process {process.pid}{_whose(plain)} carries a mark that cannot be read: {error}"
    )


def _whose(plain: dict[str, Any]) -> str:
    try:
        return " of {stack}/{engine}#{replica}".format(**plain["replica"])
    except (KeyError, TypeError):
        return ""


def _supervisor(marked: list[Process]) -> Process | None:
    """A child that the supervisor has forked, and that has not yet become another program, looks like it: the
    session's leader, else the oldest, is the one."""
    candidates = [process for process in marked if process.is_supervisor]
    return min(candidates, key=lambda p: (p.session != p.pid, p.started, p.pid), default=None)


def _engine(supervisor: Process, members: tuple[Process, ...]) -> Process | None:
    children = [member for member in members if member.parent == supervisor.pid and member != supervisor]
    return min(children, key=lambda child: (child.started, child.pid), default=None)


class _Family:
    """Who belongs together besides carrying the same mark."""

    def __init__(self, processes: dict[int, Process]) -> None:
        self.children: dict[int, list[Process]] = defaultdict(list)
        self.sessions: dict[int, list[Process]] = defaultdict(list)
        for process in processes.values():
            self.children[process.parent].append(process)
            self.sessions[process.session].append(process)

    def of(self, marked: list[Process], supervisor: Process | None) -> tuple[Process, ...]:
        """The marked ones, the session that the supervisor leads, and all their descendants."""
        members: dict[int, Process] = {}
        waiting = list(marked)
        if supervisor is not None:
            waiting += self.sessions[supervisor.pid]
        launches = {process.mark for process in marked}
        while waiting:
            process = waiting.pop()
            if process.pid in members or (process.mark and process.mark not in launches):
                continue  # a launch that was started from inside another one is a launch of its own
            members[process.pid] = process
            waiting += self.children[process.pid]
        return tuple(members[pid] for pid in sorted(members))
