"""Processes by a name that is never given twice, and what the kernel says of them."""

import os
from dataclasses import dataclass

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process takes: memory in bytes, open files, CPU time in seconds since its start."""

    pid: int
    resident_bytes: int
    open_fds: int
    cpu_seconds: float


def name_of(pid: int) -> str:
    """`<pid>-<start time>`, or "" for a process that has ended. Ids come again, both together do not."""
    fields = _stat(pid)
    return f"{pid}-{fields[19]}" if fields and fields[0] not in "ZX" else ""


def is_alive(name: str) -> bool:
    pid = name.partition("-")[0]
    return pid.isdecimal() and name_of(int(pid)) == name


def usage_of(pid: int) -> Usage | None:
    """What a process takes now, or None if it has ended."""
    fields = _stat(pid)
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * _PAGE
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None
    if not fields:
        return None
    return Usage(pid, resident, descriptors, (int(fields[11]) + int(fields[12])) / _TICKS)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state (field 3) on; none where the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The program's name may hold blanks and parentheses.
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
