"""The processes that NVML names: whether its numbers mean processes of this PID namespace, and which.

In a container NVML may tell the numbers of the host. That is seen here, never assumed: a number counts where
this is the first namespace, or where the process that has it has a GPU's device open.
"""

import os
from pathlib import Path

PROC = Path("/proc")

FIRST_NAMESPACE = "pid:[4026531836]"
"""The PID namespace that Linux boots with has this number always (PROC_PID_INIT_INO)."""

DEVICES = "/dev/nvidia"


def holder_name(pid: int, proc: Path = PROC) -> str:
    """The name of the process that NVML means, "" where none is seen here that it could mean."""
    if not _is_first_namespace(proc) and not _has_gpu_open(pid, proc):
        return ""
    return process_name(pid, proc)


def process_name(pid: int, proc: Path = PROC) -> str:
    """The name of a process as `ps` shows it, "" when there is none."""
    folder = proc / str(pid)
    try:
        name = (folder / "comm").read_text(errors="replace").strip()
        if len(name) == 15:  # the kernel cuts there; a title set by setproctitle is whole in cmdline
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            whole = title.rsplit("/", 1)[-1]
            name = whole if whole.startswith(name) else name
    except OSError:
        return ""
    return name


def parents_of(pid: int, proc: Path = PROC) -> tuple[int, ...]:
    """The ancestors of a process, the nearest first, without the first process of all."""
    found: list[int] = []
    while pid > 1 and len(found) < 64:
        try:
            stat = (proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            break
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid > 1:
            found.append(pid)
    return tuple(found)


def _is_first_namespace(proc: Path) -> bool:
    try:
        return os.readlink(proc / "self" / "ns" / "pid") == FIRST_NAMESPACE
    except OSError:
        return False


def _has_gpu_open(pid: int, proc: Path) -> bool:
    folder = proc / str(pid) / "fd"
    try:
        return any(_target(folder / name).startswith(DEVICES) for name in os.listdir(folder))
    except OSError:
        return False


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""  # closed meanwhile
