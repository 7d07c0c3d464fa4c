"""Listening TCP ports and who holds them."""

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from sage_reconcile.model.observed import PortHolder

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN = b" 0A "


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket with its address; `pid` is None where the owner may not be seen."""

    host: str
    port: int
    pid: int | None


def listeners() -> tuple[Listener, ...]:
    """Every listening TCP socket. Raises OSError where they cannot be read."""
    try:
        found = psutil.net_connections(kind="tcp")
    except (psutil.Error, RuntimeError) as error:
        raise OSError(f"listening ports cannot be read: {error or type(error).__name__}") from error
    return tuple(
        Listener(str(sock.laddr.ip), int(sock.laddr.port), sock.pid)
        for sock in found
        if sock.status == psutil.CONN_LISTEN and sock.laddr
    )


def listening(tables: Iterable[Path] = TABLES) -> tuple[tuple[PortHolder, ...] | None, str]:
    """Listening TCP ports; of those in other users' hands the pid is not told to everybody.

    Straight from the kernel's tables: beside a busy gateway they hold thousands of connections, all of which
    psutil would take apart.
    """
    try:
        sockets = {inode: port for table in tables for inode, port in _listening(table)}
    except (OSError, ValueError, IndexError) as error:
        return None, f"listening ports cannot be read: {error or type(error).__name__}"
    holders = _holders(sockets.keys())
    found = {(port, holders.get(inode)) for inode, port in sockets.items()}
    ordered = sorted(found, key=lambda item: (item[0], item[1] or 0))
    return tuple(PortHolder(port, pid, _name(pid)) for port, pid in ordered), ""


def _listening(table: Path) -> Iterator[tuple[str, int]]:
    """The inode and port of each listening socket of one table."""
    try:
        lines = table.read_bytes().splitlines()
    except FileNotFoundError:
        return  # a kernel without IPv6
    for line in lines:
        if _LISTEN in line:
            fields = line.split()
            if fields[3] == _LISTEN.strip():
                yield fields[9].decode(), int(fields[1].rpartition(b":")[2], 16)


def _holders(inodes: Collection[str]) -> dict[str, int]:
    """The first process that has each of the sockets, as far as this user may see."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, int] = {}
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if len(found) == len(wanted):
            break
        with contextlib.suppress(OSError):  # it ended, or is another user's
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inode = wanted.get(os.readlink(entry.path))
                    if inode is not None:
                        found.setdefault(inode, pid)
    return found


def _name(pid: int | None) -> str:
    try:
        return psutil.Process(pid).name() if pid else ""
    except psutil.Error:
        return ""
