"""Listening TCP ports and who holds them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from sage_reconcile.model.observed import PortHolder


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


def listening(
    connections: Callable[..., Iterable[Any]] = psutil.net_connections,
) -> tuple[tuple[PortHolder, ...] | None, str]:
    """Listening TCP ports; of those in other users' hands the pid is not told to everybody."""
    try:
        found = {
            (sock.laddr.port, sock.pid)
            for sock in connections(kind="tcp")
            if sock.status == psutil.CONN_LISTEN and sock.laddr
        }
    except (psutil.Error, OSError, RuntimeError) as error:
        return None, f"listening ports cannot be read: {error or type(error).__name__}"
    ordered = sorted(found, key=lambda item: (item[0], item[1] or 0))
    return tuple(PortHolder(port, pid, _name(pid)) for port, pid in ordered), ""


def _name(pid: int | None) -> str:
    try:
        return psutil.Process(pid).name() if pid else ""
    except psutil.Error:
        return ""
