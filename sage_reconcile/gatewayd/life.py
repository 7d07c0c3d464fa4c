"""Starts and ends the gateway's processes."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from gateway import settings
from gateway.auth import check_listen
from gateway.handover import is_offered
from gateway.keys import load_keys
from gateway.keysource import ADMIN_API_KEYS, API_KEYS
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.gatewayd.foreground import run_both
from sage_reconcile.gatewayd.options import (
    GatewayOptions,
    command_line,
    log_file,
    marks,
    record_options,
    worker_records,
)
from sage_reconcile.gatewayd.processes import (
    WATCH_LOG,
    GatewayProcess,
    WatcherProcess,
    environ_of_pid,
    family,
    find,
    find_watcher,
    is_parent,
    members,
    watchers,
)
from sage_reconcile.gatewayd.reach import check_port, health_pid
from sage_reconcile.gatewayd.settle import HOST, PORT, Start, is_same_access, settle_again
from sage_reconcile.gatewayd.spawn import (
    how_it_ended,
    last_lines,
    open_log,
    spawn_detached,
    with_import_path,
)
from sage_reconcile.gatewayd.watcher import check_no_other, start_watcher
from sage_reconcile.home import Home

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 30.0
KILL_TIMEOUT_S = 5.0
POLL_S = 0.05
# What a gateway was started with is told by its own environment and by no other.
OF_START = (ADMIN_API_KEYS, API_KEYS, HOST, PORT, WATCH_LOG)


def start(home: Home, options: GatewayOptions, environ: Mapping[str, str] | None = None) -> GatewayProcess:
    """Starts a gateway that outlives its caller, and waits until it answers /health.

    `environ` is the environment it gets, by default this process's. Raises BlockedError (already running,
    port busy, no keys on an open address) and PermanentError (it ended at start; says its last log lines).
    """
    env = _prepare(home, options, os.environ if environ is None else environ)
    return launch(home, options, env)


def launch(home: Home, options: GatewayOptions, environ: dict[str, str], old: int = 0) -> GatewayProcess:
    """Starts a gateway, in the place of the one with the pid `old` if that is not 0; waits until it serves.

    `environ` is the whole environment, see `whole_environ`. Raises PermanentError if they end at start; then
    none of them is left, and the old one serves as before.
    """
    log = log_file(home)
    written = open_log(log)
    pid = spawn_detached(command_line(home, options, old), environ, log)
    try:
        _await_health(home, pid, options, written, old)
    except BaseException:
        end(home, lambda: family(pid), force=True)
        raise
    return GatewayProcess(pid, psutil.Process(pid).create_time(), options)


def start_all(home: Home, wanted: Start) -> GatewayProcess:
    """Starts a gateway and, for a stack file, its watcher, both or none; a watcher that runs is kept.

    Raises as `start` and `start_watcher` do.
    """
    stack = wanted.options.stack
    watcher = check_no_other(home, stack) if stack else None
    started = start(home, wanted.options, wanted.environ)
    if stack and watcher is None:
        try:
            start_watcher(home, stack, wanted.stack_name, wanted.watch_environ)
        except BaseException:
            end(home, lambda: members(home), force=True)
            raise
    return started


def run_foreground(home: Home, wanted: Start) -> int:
    """Serves until a signal ends it; the exit status. Raises BlockedError as `start_all` does.

    Without a stack file this process is replaced by the gateway, and does not return.
    """
    stack = wanted.options.stack
    watcher = check_no_other(home, stack) if stack else None
    env = _prepare(home, wanted.options, wanted.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    if not stack or watcher is not None:
        os.execve(sys.executable, command_line(home, wanted.options), env)
    return run_both(home, wanted.options, env, wanted.watch_environ)


def stop(home: Home, force: bool = False) -> GatewayProcess | None:
    """Ends the gateway of this home, every worker of it and its watcher; returns what ran, or None.

    Requests in flight, and a replacement that the watcher is busy with, are finished within STOP_GRACE_S;
    `force` does not wait for them. Engines stay.
    """
    running = find(home)
    end(home, lambda: [*members(home), *watchers(home)], force)
    return running


def is_outdated(running: GatewayProcess, stack: str) -> bool:
    """Whether a restart would start this gateway with other options or keys, as the stack file says now.

    Raises ReconcileError when the file is at fault or a key is not to be had.
    """
    environ = environ_of_pid(running.pid)
    if not environ:
        return False
    watcher = find_watcher(Home(Path(environ[settings.MARK])))
    # References that neither environment has, as they were started before the file named them.
    ours = {name: value for name, value in os.environ.items() if name not in OF_START}
    wanted = settle_again(running.options, stack, {**ours, **environ_before(running, watcher)})
    has_other_options = replace(wanted.options, stack=running.options.stack) != running.options
    return has_other_options or not is_same_access(wanted.environ, environ)


def environ_before(running: GatewayProcess | None, watcher: WatcherProcess | None) -> dict[str, str]:
    """The environment that both were started with: secrets that came by it are in no file, and what the keys
    of the stack file were read from only the watcher has.
    """
    gateway = environ_of_pid(running.pid) if running else {}
    beside = environ_of_pid(watcher.pid) if watcher else {}
    left_out = OF_START if running else ()
    return {name: value for name, value in beside.items() if name not in left_out} | gateway


def end(home: Home, look: Callable[[], list[psutil.Process]], force: bool) -> None:
    """Ends the processes that `look` finds, as `stop` does."""
    ending = look()
    if not force:
        # The parent hands the signal on to its workers; orphaned workers have nobody who would.
        told = [process for process in ending if is_parent(process)]
        followers = {child.pid for process in told for child in _children(process)}
        for process in ending:
            if process.pid not in followers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)
        psutil.wait_procs(ending, timeout=STOP_GRACE_S)
    # Looked at again: a parent may have started a worker in the meantime. Parents come first, lest one starts
    # another worker for the one that is killed before it.
    left = dict.fromkeys([*look(), *ending])
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(list(left), timeout=KILL_TIMEOUT_S)
    if alive:
        raise PermanentError(f"process {alive[0].pid} of the gateway does not end, not even by SIGKILL")
    living = {process.pid for process in members(home)}
    for pid, record in worker_records(home).items():
        if pid not in living:
            record.unlink(missing_ok=True)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.Error:
        return []


def _prepare(home: Home, options: GatewayOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """Checks what must hold before a start, records the options, and gives the process's environment."""
    running = find(home)
    if running is not None:
        raise BlockedError(f"the gateway already runs: pid {running.pid}, {running.options.address}")
    env = whole_environ(home, options, environ)
    check_port(options)
    home.ensure()
    record_options(home, options)
    return env


def whole_environ(home: Home, options: GatewayOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a gateway's process. Raises ReconcileError if the keys in it do not do."""
    check_listen(options.host, load_keys(environ, options.api_key_file, options.workers))
    return {**with_import_path(environ), **marks(home, options)}


def _await_health(home: Home, pid: int, options: GatewayOptions, written: int, old: int) -> None:
    """Waits for /health of this very gateway, and until the old one, if any, has let go.

    `written` is the size of the log before it was started.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            told = last_lines(log_file(home), written)
            raise PermanentError(f"the gateway ended at start {how_it_ended(status)}:\n{told}")
        answering = health_pid(options)
        if answering in {process.pid for process in family(pid)} and not (old and is_offered(old)):
            return
        time.sleep(POLL_S)
    told = last_lines(log_file(home), written)
    raise PermanentError(f"the gateway did not answer within {START_TIMEOUT_S:g} s; it was ended:\n{told}")
