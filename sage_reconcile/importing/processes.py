"""Processes of this user that listen, with their command lines; read from /proc, nothing is touched."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sage_reconcile.importing.recognise import Recognised, recognise
from sage_reconcile.observe.ports import Listener

# A server's own workers may hold its socket: its command line is that of one of the nearest ancestors.
NEAREST = 3
GATEWAY_MODULES = frozenset({"gateway", "gateway.worker"})
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1", "": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that listens, and may be an engine. `pids` are it and all that descends from it."""

    pid: int
    argv: tuple[str, ...]
    environ: dict[str, str]
    cwd: str
    host: str
    port: int
    known: Recognised | None
    pids: frozenset[int] = frozenset()

    @property
    def url(self) -> str:
        is_tls = self.known is not None and self.known.flag("ssl-keyfile", "ssl-certfile", "ssl-key-file")
        host = EVERYWHERE.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if is_tls else 'http'}://{shown}:{self.port}"


def candidates(listeners: Collection[Listener], ours: Collection[int]) -> list[Candidate]:
    """One for each port, in order of ports; without those of `ours`, of gateways, and of other users."""
    found: dict[int, Candidate] = {}
    children = _children()
    for one in sorted(listeners, key=lambda one: (one.port, one.host)):
        if one.pid is None or one.pid in ours or one.pid == os.getpid() or one.port in found:
            continue
        candidate = _candidate(one, children)
        if candidate is not None and not _is_sage(candidate):
            found[one.port] = candidate
    return [found[port] for port in sorted(found)]


def _candidate(one: Listener, children: dict[int, list[int]]) -> Candidate | None:
    assert one.pid is not None
    chosen = one.pid
    for pid in _line(one.pid):
        if recognise(_argv(pid)):
            chosen = pid
            break
    try:
        if Path("/proc", str(chosen)).stat().st_uid != os.getuid():
            return None
        cwd = os.readlink(f"/proc/{chosen}/cwd")
        environ = _environ(chosen)
    except OSError:
        return None  # gone, or not to be looked at
    argv = _argv(chosen)
    pids = frozenset(_family(chosen, children))
    return Candidate(chosen, argv, environ, cwd, one.host, one.port, recognise(argv), pids)


def _is_sage(candidate: Candidate) -> bool:
    """A gateway of any SAGE_HOME, or a launch whose supervisor another SAGE_HOME has."""
    argv = candidate.argv
    is_gateway = any(argv[at] == "-m" and argv[at + 1] in GATEWAY_MODULES for at in range(len(argv) - 1))
    return is_gateway or "SAGE_LAUNCH" in candidate.environ


def _argv(pid: int) -> tuple[str, ...]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(word.decode(errors="replace") for word in raw.rstrip(b"\0").split(b"\0") if raw.strip(b"\0"))


def _environ(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(pair.split("=", 1) for pair in raw.split("\0") if "=" in pair)


def _line(pid: int) -> Iterator[int]:
    """The process and its nearest ancestors."""
    for _ in range(NEAREST):
        if pid <= 1:
            return
        yield pid
        pid = _parent(pid)


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat.rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            found.setdefault(_parent(int(name)), []).append(int(name))
    return found


def _family(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children.get(one, [])
