"""What runs, read from /proc by the tests themselves: no code of sage is asked."""

import contextlib
import json
import os
import random
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARKS = ("SAGE_LAUNCH", "SAGE_GATEWAY")
# Below the range from which the kernel gives ports to clients, and apart from those that sage gives out.
PORTS = range(20000, 30000)
_given: set[int] = set()


def free_port(count: int = 1) -> int:
    """A port that is free, and never given twice by this process; with `count`, so many from it on."""
    for _ in range(1000):
        first = random.choice(PORTS)
        wanted = range(first, first + count)
        if not _given.intersection(wanted) and all(_is_free(port) for port in wanted):
            _given.update(wanted)
            return first
    raise RuntimeError("no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


@dataclass(frozen=True)
class Process:
    """One live process."""

    pid: int
    parent: int
    session: int
    environ: dict[str, str]

    @property
    def mark(self) -> dict[str, object]:
        """What SAGE_LAUNCH says, {} where there is none."""
        with contextlib.suppress(ValueError):
            found = json.loads(self.environ.get("SAGE_LAUNCH", ""))
            return found if isinstance(found, dict) else {}
        return {}


def is_alive(pid: int) -> bool:
    """A zombie is not alive: whether init has reaped it yet says nothing about us."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def marked(text: str) -> list[Process]:
    """Live processes in whose marks `text` occurs: a SAGE_HOME, a launch id."""
    return [
        process for process in _processes() if any(text in process.environ.get(name, "") for name in MARKS)
    ]


def _processes() -> Iterator[Process]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or not is_alive(int(entry)):
            continue
        with contextlib.suppress(OSError, IndexError):
            raw = Path(f"/proc/{entry}/environ").read_bytes().decode(errors="replace").split("\0")
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            environ = dict(pair.split("=", 1) for pair in raw if "=" in pair)
            yield Process(int(entry), int(fields[1]), int(fields[3]), environ)


def command_line(pid: int) -> str:
    """The command line, words separated by blanks; "" when the process is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def end_all(pids: list[int]) -> None:
    """SIGKILL, for the tidying up after a test that failed."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
