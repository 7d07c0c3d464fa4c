"""Finds the processes of a gateway, and the watcher beside it, by the marks in their environment."""

import contextlib
from dataclasses import dataclass

import psutil

from gateway import settings
from sage_reconcile.gatewayd.options import GatewayOptions, options_of, recorded_options
from sage_reconcile.home import Home

PARENT, WORKER = "gateway", "gateway.worker"
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

    While a restart lets the old gateway finish there are two parents: the new one comes first. The mark alone
    proves nothing: whatever a gateway starts inherits it, an engine and its workers too. The command does.
    """
    marked = [process for process in psutil.process_iter() if is_marked(process, home)]
    parents = sorted(filter(is_parent, marked), key=_age)
    return parents + [process for process in marked if _has_module(process, WORKER)]


def family(parent: int) -> list[psutil.Process]:
    """One parent process, by its pid, and its workers; those that live."""
    try:
        process = psutil.Process(parent)
        return [process, *(child for child in process.children() if _has_module(child, WORKER))]
    except psutil.Error:
        return []


def is_marked(process: psutil.Process, home: Home) -> bool:
    """Whether a live process carries the mark of this home."""
    return environ_of(process).get(settings.MARK) == str(home.root)


def is_parent(process: psutil.Process) -> bool:
    """Whether it was started by the gateway's own command."""
    return _has_module(process, PARENT)


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


def _has_module(process: psutil.Process, module: str) -> bool:
    """Whether it is a Python that was told to run this module."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return any(command[at : at + 2] == ["-m", module] for at in range(len(command) - 1))


def _age(process: psutil.Process) -> tuple[float, int]:
    """What sorts the youngest first."""
    try:
        return -process.create_time(), -process.pid
    except psutil.Error:
        return 0.0, -process.pid
