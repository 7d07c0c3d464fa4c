"""Starts and ends the gateway's processes."""

import contextlib
import os
import signal
import site
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import psutil

import gateway
from gateway import settings
from gateway.auth import check_listen, load_keys
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.gatewayd.options import (
    GatewayOptions,
    command_line,
    log_file,
    record_options,
    recorded_options,
    worker_records,
)
from sage_reconcile.gatewayd.processes import GatewayProcess, environ_of, find, is_parent, members
from sage_reconcile.gatewayd.reach import check_port, health_pid
from sage_reconcile.home import Home

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 30.0
KILL_TIMEOUT_S = 5.0
POLL_S = 0.05
LOG_ROTATE_BYTES = 10 << 20
LAST_LINES = 12


def start(home: Home, options: GatewayOptions, environ: Mapping[str, str] | None = None) -> GatewayProcess:
    """Starts a gateway that outlives its caller, and waits until it answers /health.

    `environ` is the environment it gets, by default this process's. Raises BlockedError (already running,
    port busy, no keys on an open address) and PermanentError (it ended at start; says its last log lines).
    """
    env = _prepare(home, options, os.environ if environ is None else environ)
    log = _open_log(home)
    written = log.stat().st_size
    to_log = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_APPEND, 0o600)
    no_input = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    pid = os.posix_spawn(
        sys.executable,
        command_line(home, options),
        env,
        file_actions=[no_input, to_log, (os.POSIX_SPAWN_DUP2, 1, 2)],
        setsid=True,
    )
    try:
        _await_health(home, pid, options, written)
    except BaseException:
        stop(home, force=True)
        raise
    return GatewayProcess(pid, psutil.Process(pid).create_time(), options)


def run_foreground(home: Home, options: GatewayOptions) -> NoReturn:
    """Becomes the gateway: this process is replaced by it. Raises BlockedError as `start` does."""
    env = _prepare(home, options, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command_line(home, options), env)


def stop(home: Home, force: bool = False) -> GatewayProcess | None:
    """Ends the gateway of this home and every worker of it; returns what ran, or None.

    Requests in flight are finished within STOP_GRACE_S; `force` does not wait for them. Engines stay.
    """
    running = find(home)
    ending = members(home)
    if not force:
        # The parent hands the signal on to its workers; orphaned workers have nobody who would.
        for process in [process for process in ending if is_parent(process)] or ending:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        psutil.wait_procs(ending, timeout=STOP_GRACE_S)
    # Looked at again: a parent may have started a worker in the meantime.
    left = {*ending, *members(home)}
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(list(left), timeout=KILL_TIMEOUT_S)
    if alive:
        raise PermanentError(f"gateway process {alive[0].pid} does not end, not even by SIGKILL")
    for record in worker_records(home).values():
        record.unlink(missing_ok=True)
    return running


def restart(home: Home) -> GatewayProcess:
    """Stops the gateway, if it runs, and starts it with the options and the environment that it had.

    Raises BlockedError if no options are known, and as `start` does.
    """
    running = find(home)
    options = running.options if running else recorded_options(home)
    if options is None:
        raise BlockedError("no gateway runs and none was started before: use `sage gateway start`")
    # API keys and secrets that came by the environment are in no file. What the caller sets anew goes first.
    before = environ_of(psutil.Process(running.pid)) if running else {}
    stop(home)
    return start(home, options, {**before, **os.environ})


def _prepare(home: Home, options: GatewayOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """Checks what must hold before a start, records the options, and gives the process's environment."""
    running = find(home)
    if running is not None:
        raise BlockedError(f"the gateway already runs: pid {running.pid}, {running.options.address}")
    check_listen(options.host, load_keys(environ, options.api_key_file))
    check_port(options)
    home.ensure()
    record_options(home, options)
    env = {**environ, settings.MARK: str(home.root), "SAGE_HOME": str(home.root)}
    root = str(Path(gateway.__path__[0]).parent)
    if root not in site.getsitepackages():
        # A checkout that is not installed: the gateway does not search its working directory.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH", "")]))
    return env


def _open_log(home: Home) -> Path:
    """The log file, made if there is none, put aside if it has grown large."""
    log = log_file(home)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_ROTATE_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
    log.touch(mode=0o600)
    return log


def _await_health(home: Home, pid: int, options: GatewayOptions, written: int) -> None:
    """Waits for /health of this very gateway. `written` is the size of the log before it was started."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            raise PermanentError(f"the gateway ended at start with code {code}:\n{_told(home, written)}")
        answering = health_pid(options)
        if answering is not None and answering in {process.pid for process in members(home)}:
            return
        time.sleep(POLL_S)
    told = _told(home, written)
    raise PermanentError(f"the gateway did not answer within {START_TIMEOUT_S:g} s; it was ended:\n{told}")


def _told(home: Home, written: int) -> str:
    """The last lines that were logged after the first `written` bytes."""
    with log_file(home).open("rb") as file:
        file.seek(written)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:]) or f"  (nothing in {log_file(home)})"
