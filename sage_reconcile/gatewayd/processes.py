"""Finds the processes of a gateway, and the watcher beside it, by the marks in their environment."""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass

import psutil

from gateway import settings
from sage_reconcile.gatewayd.options import GatewayOptions, options_of, recorded_options, worker_records
from sage_reconcile.home import Home

# Of a watcher's environment: the file that it logs to, or "" for a terminal.
WATCH_LOG = "SAGE_GATEWAY_WATCH_LOG"
WATCH = ("-m", "sage_reconcile.cli.main", "watch")


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """A running gateway; `started` in Unix seconds, `pid` that of the process that ends all of it."""

    pid: int
    started: float
    options: GatewayOptions


@dataclass(frozen=True, slots=True)
class WatcherProcess:
    """A running `sage watch` that a gateway brought along. `started` in Unix seconds, paths absolute.

    `log` is "" for one in the foreground.
    """

    pid: int
    started: float
    file: str
    log: str


def find(home: Home) -> GatewayProcess | None:
    """The gateway of this home that runs now, or None."""
    for process in members(home):
        with contextlib.suppress(psutil.Error):
            options = (
                options_of(process.cmdline(), environ_of(process))
                or recorded_options(home)
                or GatewayOptions()
            )
            return GatewayProcess(process.pid, process.create_time(), options)
    return None


def find_watcher(home: Home) -> WatcherProcess | None:
    """The watcher beside the gateway of this home, or None. It may outlive a gateway that was killed."""
    for process in watchers(home):
        with contextlib.suppress(psutil.Error):
            file = _watched_file(process.cmdline())
            log = environ_of(process).get(WATCH_LOG, "")
            return WatcherProcess(process.pid, process.create_time(), file, log)
    return None


def watchers(home: Home) -> list[psutil.Process]:
    """The watchers of this home that were started with a gateway; a `sage watch` by hand is none of them."""
    found = [
        process for process in psutil.process_iter() if is_marked(process, home) and _is_watcher(process)
    ]
    pids = {process.pid for process in found}
    # A child that it has forked and that is not yet another program looks the same.
    return [process for process in found if _parent(process) not in pids]


def members(home: Home) -> list[psutil.Process]:
    """The gateway's parent process first, then its workers, those included that lost their parent.

    The mark alone proves nothing: whatever a gateway starts inherits it, an engine and its workers too. So a
    parent is told by its command, and a worker by its parent or by the record that it keeps itself.
    """
    marked = [process for process in psutil.process_iter() if is_marked(process, home)]
    parents = [process for process in marked if is_parent(process)]
    pids = {process.pid for process in parents}
    recorded = worker_records(home).keys()
    return parents + [process for process in marked if _is_worker(process, pids, recorded)]


def is_marked(process: psutil.Process, home: Home) -> bool:
    """Whether a live process carries the mark of this home."""
    return environ_of(process).get(settings.MARK) == str(home.root)


def is_parent(process: psutil.Process) -> bool:
    """Whether it was started by the gateway's own command; with one worker it is that worker, too."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return any(command[at : at + 2] == ["-m", "gateway"] for at in range(len(command) - 1))


def environ_of(process: psutil.Process) -> dict[str, str]:
    """The environment that a process was started with; empty for one that ended or is somebody else's."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def environ_of_pid(pid: int) -> dict[str, str]:
    """As environ_of, for a process that may have ended."""
    try:
        return environ_of(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return {}


def _watched_file(command: list[str]) -> str:
    """The stack file of the command line of a watcher; "" for any other command."""
    for at in range(len(command) - len(WATCH)):
        if tuple(command[at : at + len(WATCH)]) == WATCH:
            return command[at + len(WATCH)]
    return ""


def _is_watcher(process: psutil.Process) -> bool:
    try:
        return WATCH_LOG in environ_of(process) and bool(_watched_file(process.cmdline()))
    except psutil.Error:
        return False


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def _is_worker(process: psutil.Process, parents: set[int], recorded: Collection[int]) -> bool:
    try:
        is_spawned = any("multiprocessing" in word for word in process.cmdline())
        return is_spawned and (process.ppid() in parents or process.pid in recorded)
    except psutil.Error:
        return False
