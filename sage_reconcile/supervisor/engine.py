"""Starts the engine's main process from the supervisor's main thread."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from sage_reconcile.supervisor import tree
from sage_reconcile.supervisor.order import Order, mark_text

# Read at import: sage may be upgraded on disk while this supervisor still has to restart its engine.
SHIM = Path(__file__).with_name("shim.py").read_text(encoding="utf-8")


class Engine(NamedTuple):
    """The main process. `started` in epoch seconds; `report` is the read end of the shim's report pipe."""

    pid: int
    started: float
    report: int

    def start_error(self) -> str:
        """Why the program could not be run, once the process has ended; "" where it did run."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.report, 4096).decode(errors="replace")
        return ""

    def close(self) -> None:
        os.close(self.report)


def environment(order: Order) -> dict[str, str]:
    """What the engine sees. SPT_NOENV keeps setproctitle from erasing the mark in /proc/PID/environ."""
    env = {name: value for name, value in order.env.items() if name != "SAGE_ROLE"}
    return {**env, "SAGE_LAUNCH": mark_text(order.mark), "SPT_NOENV": "1"}


def start(order: Order, output: int) -> Engine:
    """Starts it with stdout and stderr on the descriptor `output`. Raises OSError.

    The order travels in a memory file: not on a command line, where everybody could read the secrets in it.
    In a process group of its own, so that an engine that kills its group does not kill its supervisor; the
    session stays the supervisor's, for that is how processes are recognised as ours.
    """
    env = environment(order)
    job = {"argv": order.argv, "env": env, "cwd": order.cwd, "parent": os.getpid()}
    paper = os.memfd_create("sage-order")
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    try:
        with open(paper, "wb", closefd=False) as file:
            file.write(json.dumps(job).encode())
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", SHIM],
            {name: env[name] for name in ("SAGE_LAUNCH", "SPT_NOENV")} | _library_path(),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, paper, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
                (os.POSIX_SPAWN_DUP2, write_end, 3),
            ],
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(paper)
        os.close(write_end)
    return Engine(pid, tree.started(pid), read_end)


def _library_path() -> dict[str, str]:
    """What this interpreter itself may need to start; the engine gets its own."""
    value = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": value} if value else {}
