"""Processes from /proc: who descends from whom, and when a process started."""

import contextlib
import os
import signal
import time

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
# Seconds by which two readings of when a process started may differ: the clock may have been set.
SAME_START = 2.0


def _stat(pid: int | str) -> list[str] | None:
    """The fields of /proc/PID/stat from the state (field 3) on, or None where the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name, in parentheses, may itself hold spaces and parentheses.
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def boot_time() -> float:
    """Epoch seconds, as the kernel tells it; 0.0 where /proc/stat has none."""
    with contextlib.suppress(OSError), open("/proc/stat", encoding="ascii") as file:
        for line in file:
            if line.startswith("btime "):
                return float(line.split()[1])
    return 0.0


def uptime() -> float:
    """Seconds since boot, sleep of the host included: what orders events when the wall clock is set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Changes at every boot; "" where the kernel does not tell."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def started(pid: int) -> float:
    """When the process started, in epoch seconds; 0.0 where it is gone."""
    fields = _stat(pid)
    return int(fields[19]) / CLOCK_TICKS + boot_time() if fields else 0.0


def is_alive(pid: int) -> bool:
    """Whether there is such a process. A zombie is none: init may take seconds to reap it, or never does."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZXx"


def is_running(pid: int, start: float) -> bool:
    """Whether this very process, which started then (epoch seconds), is alive."""
    return is_alive(pid) and abs(started(pid) - start) < SAME_START


def descendants(root: int) -> list[int]:
    """Every process below `root`, zombies too: only what has been reaped is gone.

    A zombie may have lost only its main thread; while its other threads still end, it holds its memory and
    cannot be reaped. With `root` a child subreaper this is complete: whoever loses its parent becomes a child
    of `root`, whatever session or process group it has moved to.
    """
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = _stat(entry)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), ())
        found.extend(below)
        queue.extend(below)
    return found


def send(pid: int, number: signal.Signals) -> None:
    """Signals one process; one that is already gone is what was wanted."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
