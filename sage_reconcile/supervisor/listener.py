"""Who listens on the engine's port: whoever took it while the engine loaded would answer in its name."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterable

from sage_reconcile.supervisor import tree

LISTEN = b"0A"
# They listen for a server in a container, which the launch started without being its parent.
FORWARDERS = frozenset(("docker-proxy", "rootlesskit", "rootlessport", "pasta", "pasta.avx2", "slirp4netns"))


def stranger(root: int, host: str, port: int) -> str:
    """The process that listens there and does not descend from `root`, as "NAME (process PID)", or "".

    "" too where nobody can be named: a server in a container, as of `docker run`, is nobody's child here, and
    whose sockets another user's processes hold is not told to us. Reads /proc only; raises nothing.
    """
    try:
        sockets = _listening(_addresses(host), port)
        own = {root, *tree.descendants(root)}
        if not sockets or _holder(own, sockets):
            return ""
        others = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - own
        pid = _holder(sorted(others), sockets)
        return f"{_name(pid)} (process {pid})" if pid and not _is_forwarder(pid) else ""
    except (OSError, ValueError):
        return ""


def _addresses(host: str) -> list[bytes]:
    """The address itself, then the wildcards that stand for it, as /proc/net writes them."""
    exact = []
    for family, _, _, _, address in socket.getaddrinfo(host.encode(), None, type=socket.SOCK_STREAM):
        packed = socket.inet_pton(family, str(address[0]))
        exact.append(_written(packed))
        if family == socket.AF_INET:
            exact.append(_written(bytes(10) + b"\xff\xff" + packed))
    return [*exact, b"0" * 8, b"0" * 32]


def _written(packed: bytes) -> bytes:
    """Words of four bytes, each a number of this machine in hexadecimal digits."""
    words = [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)]
    return b"".join(b"%08X" % word for word in words)


def _listening(addresses: list[bytes], port: int) -> frozenset[str]:
    """The sockets that the kernel would give a connection to: where one has the very address, not the others.

    As /proc/PID/fd names them. Lines are read one by one: a busy host has a hundred thousand connections.
    """
    needle = b":%04X " % port
    found: dict[bytes, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table, "rb") as lines:
            for line in lines:
                if needle not in line:
                    continue
                _, local, _, state, *rest = line.split()
                if state == LISTEN and local.endswith(needle.strip()):
                    found.setdefault(local.partition(b":")[0], set()).add(f"socket:[{int(rest[5])}]")
    exact, wildcards = addresses[:-2], addresses[-2:]
    for group in (exact, wildcards):
        if sockets := {one for address in group for one in found.get(address, ())}:
            return frozenset(sockets)
    return frozenset()


def _holder(pids: Iterable[int], sockets: frozenset[str]) -> int | None:
    """The first of these processes that has one of the sockets open."""
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") in sockets:
                        return pid
    return None


def _is_forwarder(pid: int) -> bool:
    if _name(pid) in FORWARDERS:
        return True
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    return False


def _name(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return "a process"
