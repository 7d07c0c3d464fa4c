"""A gateway gets new processes: new code, environment and options, and no client notices."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from gateway.handover import is_offered
from sage_reconcile.errors import BlockedError, PermanentError, ReconcileError
from sage_reconcile.gatewayd.life import end, environ_before, launch, start_all, stop, whole_environ
from sage_reconcile.gatewayd.options import GatewayOptions, folder, record_options, recorded_options
from sage_reconcile.gatewayd.processes import (
    GatewayProcess,
    find,
    find_watcher,
    watchers,
)
from sage_reconcile.gatewayd.reach import check_port
from sage_reconcile.gatewayd.settle import Start, settle_again
from sage_reconcile.gatewayd.watcher import start_watcher
from sage_reconcile.home import Home


def restart(home: Home) -> GatewayProcess:
    """Replaces the gateway and its watcher, if they run, with the options and the environment that they had.
    What the gateway section of the stack file says now counts.

    The new gateway serves before the old one lets go, on the very same sockets, and the old one then finishes
    what it has in flight; if the new one fails, the old one serves on. Only one that cannot hand over (of an
    older version, or on the same port of another address) is stopped first. A second restart at the same time
    waits for the first.

    Raises BlockedError if no options are known, StackError for a faulty stack file, and as `start_all` does.
    """
    with _one_at_a_time(home):
        running, watcher = find(home), find_watcher(home)
        options = running.options if running else recorded_options(home)
        if options is None:
            raise BlockedError("no gateway runs and none was started before: use `sage gateway start`")
        stack = watcher.file if watcher else options.stack
        # What the caller sets anew goes first.
        environ = {**environ_before(running, watcher), **os.environ}
        wanted = settle_again(options, stack, environ) if stack else Start(options, environ, environ)
        env = whole_environ(home, wanted.options, wanted.environ)
        if running is None or not _can_take_over(running, wanted.options):
            stop(home)
            return start_all(home, wanted)
        return _take_over(home, running, wanted, env)


def _can_take_over(running: GatewayProcess, options: GatewayOptions) -> bool:
    # Two addresses may share a port, but not where one of them stands for all.
    is_in_the_way = running.options.port == options.port and running.options.host != options.host
    return not is_in_the_way and is_offered(running.pid)


def _take_over(home: Home, running: GatewayProcess, wanted: Start, env: dict[str, str]) -> GatewayProcess:
    options = wanted.options
    if options.port != running.options.port:
        check_port(options)
    started = launch(home, options, env, running.pid)
    record_options(home, options)
    if options.stack:
        try:
            end(home, lambda: watchers(home), force=False)
            start_watcher(home, options.stack, wanted.stack_name, wanted.watch_environ)
        except ReconcileError as error:
            raise PermanentError(
                f"the gateway was restarted (pid {started.pid}), but not its watcher: {error}"
            ) from error
    return started


@contextlib.contextmanager
def _one_at_a_time(home: Home) -> Iterator[None]:
    """Waits until no other restart of this home is under way; the lock dies with its holder."""
    home.ensure()
    folder(home).mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder(home) / "restart.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
