"""The `sage watch` beside a gateway: it keeps the engines of the gateway's stack file."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from gateway import settings
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.gatewayd.processes import WATCH, WATCH_LOG, WatcherProcess, find_watcher
from sage_reconcile.gatewayd.spawn import (
    how_it_ended,
    last_lines,
    open_log,
    spawn_detached,
    with_import_path,
    written_since,
)
from sage_reconcile.home import Home

START_TIMEOUT_S = 60.0
POLL_S = 0.05
# What `sage watch` says once it handles signals.
BEGUN = "  watching "


def start_watcher(home: Home, file: str, stack: str, environ: Mapping[str, str]) -> WatcherProcess:
    """Starts a watcher of `file` that outlives its caller, and waits until it watches.

    Raises BlockedError if this home has a watcher already, PermanentError if it ends at start (says its last
    log lines).
    """
    check_no_other(home, "")
    log = watch_log(home, stack)
    size = open_log(log)
    pid = spawn_detached(watch_command(file), watch_environ(home, environ, str(log)), log)
    try:
        _await_begin(pid, log, size)
    except BaseException:
        _kill(pid)
        raise
    running = find_watcher(home)
    if running is None:
        raise PermanentError(f"the watcher ended right after its start:\n{last_lines(log, size)}")
    return running


def check_no_other(home: Home, file: str) -> WatcherProcess | None:
    """The watcher of `file` if it runs. Raises BlockedError if this home's watcher watches another file."""
    running = find_watcher(home)
    if running is not None and running.file != file:
        raise BlockedError(
            f"beside the gateway of this SAGE_HOME runs the watcher of {running.file} (pid {running.pid}): "
            "`sage gateway stop` ends both, or run `sage watch` by hand for another file"
        )
    return running


def watch_command(file: str) -> list[str]:
    """The command that is a watcher."""
    # -P: a folder named sage_reconcile in the caller's working directory must not be started instead.
    return [sys.executable, "-P", *WATCH, file]


def watch_environ(home: Home, environ: Mapping[str, str], log: str) -> dict[str, str]:
    """The environment of a watcher; `log` is a path, or "" for a terminal."""
    marks = {settings.MARK: str(home.root), "SAGE_HOME": str(home.root), WATCH_LOG: log}
    return {**with_import_path(environ), **marks}


def watch_log(home: Home, stack: str) -> Path:
    return home.logs / f"watch-{stack}.log"


def _await_begin(pid: int, log: Path, size: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            told = last_lines(log, size)
            raise PermanentError(f"the watcher ended at start {how_it_ended(status)}:\n{told}")
        if BEGUN in written_since(log, size):
            return
        time.sleep(POLL_S)
    told = last_lines(log, size)
    raise PermanentError(f"the watcher did not begin within {START_TIMEOUT_S:g} s; it was ended:\n{told}")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it was the end of this process that raised, and it is reaped
