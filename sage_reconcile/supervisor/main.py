"""A supervisor's own start: detach, take the order, say so, then do nothing but serve the launch."""

import contextlib
import ctypes
import json
import os
from pathlib import Path

from sage_reconcile.supervisor.order import Order, OrderError, parse
from sage_reconcile.supervisor.supervise import Supervisor

PR_SET_CHILD_SUBREAPER = 36


def daemonise() -> None:
    """A child of init in a session of its own, whose id is its PID. The caller's process ends here."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel has no child subreapers")


def read_order() -> Order:
    """The order on stdin. Raises OrderError."""
    with open(0, "rb", closefd=False) as file:
        return parse(file.read())


def answer(plain: dict[str, object]) -> None:
    """One line to the caller. Raises BrokenPipeError where nobody waits for it any more."""
    os.write(1, json.dumps(plain).encode() + b"\n")


def redirect(directory: Path) -> None:
    """stdin and stdout to nothing, stderr to supervisor.log; this ends what the caller waits for."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    # A disk that is full at this moment must not keep the engine from starting.
    with contextlib.suppress(OSError):
        log = os.open(directory / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 2)
        os.close(log)


def main() -> None:
    """Never returns. Exit status 2: the order was not taken, and stdout says why."""
    try:
        daemonise()
        supervisor = Supervisor(read_order())
        supervisor.begin()
    except (OrderError, OSError) as error:
        answer({"error": str(error)})
        os._exit(2)
    try:
        answer({"pid": supervisor.pid})
    except BrokenPipeError:
        # The caller is gone or gave up: it must be able to rely on nothing having been started.
        os._exit(2)
    redirect(supervisor.records.directory)
    status = supervisor.run()
    # Not sys.exit: a probing thread that still waits must not hold up the end.
    os._exit(status)
