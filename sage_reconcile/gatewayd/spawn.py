"""Starts a process beside this one, and keeps what it prints."""

import os
import signal
import site
import sys
from collections.abc import Mapping
from pathlib import Path

import gateway

LOG_ROTATE_BYTES = 10 << 20
LAST_LINES = 12


def spawn_detached(command: list[str], environ: Mapping[str, str], log: Path) -> int:
    """Starts a process in a session of its own that writes to `log`; its pid."""
    to_log = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_APPEND, 0o600)
    actions = [_no_input(), to_log, (os.POSIX_SPAWN_DUP2, 1, 2)]
    return os.posix_spawn(sys.executable, command, environ, file_actions=actions, setsid=True)


def spawn_attached(command: list[str], environ: Mapping[str, str]) -> int:
    """Starts a child that writes where this process does; its pid.

    In a process group of its own, so that Ctrl-C reaches only this process, which hands it on once.
    """
    return os.posix_spawn(
        sys.executable, command, environ, file_actions=[_no_input()], setpgroup=0, setsigmask=()
    )


def with_import_path(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a Python that does not search its working directory: a checkout is named in it."""
    root = str(Path(gateway.__path__[0]).parent)
    if root in site.getsitepackages():
        return dict(environ)
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, environ.get("PYTHONPATH", "")]))}


def open_log(log: Path) -> int:
    """Makes the log file if there is none, puts it aside if it has grown large; its size in bytes."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_ROTATE_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
    log.touch(mode=0o600)
    return log.stat().st_size


def written_since(log: Path, size: int) -> str:
    """What was logged after the first `size` bytes."""
    with log.open("rb") as file:
        file.seek(size)
        return file.read().decode(errors="replace")


def last_lines(log: Path, size: int) -> str:
    """The last lines that were logged after the first `size` bytes, indented for an error."""
    lines = written_since(log, size).splitlines()
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:]) or f"  (nothing in {log})"


def exit_status(status: int) -> int:
    """A status of waitpid as shells tell it: the exit code, or 128 and the number of the signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def how_it_ended(status: int) -> str:
    """A status of waitpid in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def _no_input() -> tuple[int, int, str, int, int]:
    return os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0
