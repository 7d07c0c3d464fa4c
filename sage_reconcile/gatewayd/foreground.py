"""A gateway and its watcher as children of this process, until either a signal or the gateway's end."""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from sage_reconcile.gatewayd.options import GatewayOptions, command_line
from sage_reconcile.gatewayd.spawn import exit_status, how_it_ended, spawn_attached
from sage_reconcile.gatewayd.watcher import watch_command, watch_environ
from sage_reconcile.home import Home

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class _Children:
    """The pids of both, and how each ended, as waitpid tells it."""

    gateway: int
    watcher: int
    ended: dict[int, int]

    def reap(self) -> None:
        for pid in (self.gateway, self.watcher):
            if pid not in self.ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.ended[pid] = status

    def signal(self, pid: int, number: signal.Signals) -> None:
        """To one that lives: a child that is not reaped keeps its pid."""
        if pid not in self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def run_both(
    home: Home, options: GatewayOptions, environ: dict[str, str], watch_base: Mapping[str, str]
) -> int:
    """Runs both until the gateway ends; the exit status.

    Ctrl-C, SIGTERM and SIGHUP end both; a second one does not wait for requests in flight. A watcher
    that ends is told and not restarted. Engines stay.
    """
    # What is ignored stays so (nohup, a background job): a blocked signal would be waited for all the same.
    ending = {number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    wanted = {*ending, signal.SIGCHLD}
    # Blocked and waited for: no signal is lost between two looks, and no handler runs in between.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        gateway = spawn_attached(command_line(home, options), environ)
        watcher = spawn_attached(watch_command(options.stack), watch_environ(home, watch_base, ""))
        return _attend(_Children(gateway, watcher, {}), wanted)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _attend(children: _Children, wanted: set[signal.Signals]) -> int:
    signals = 0
    is_told = False
    while True:
        children.reap()
        is_over = children.gateway in children.ended
        if len(children.ended) == 2:
            return 0 if signals or _was_asked(children) else exit_status(children.ended[children.gateway])
        if is_over:
            children.signal(children.watcher, signal.SIGTERM)
        elif children.watcher in children.ended and not signals and not is_told:
            is_told = True
            how = how_it_ended(children.ended[children.watcher])
            sys.stderr.write(f"the watcher ended {how}; the gateway goes on, but nothing is reconciled\n")
        if signal.sigwait(wanted) == signal.SIGCHLD:
            continue
        signals += 1
        # The gateway waits for requests in flight once, and no longer when it is told again.
        children.signal(children.gateway, signal.SIGTERM)
        children.signal(children.watcher, signal.SIGTERM if signals == 1 else signal.SIGKILL)


def _was_asked(children: _Children) -> bool:
    """Whether `sage gateway stop` ended it: it raises the signal again when its workers have ended."""
    status = children.ended[children.gateway]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
