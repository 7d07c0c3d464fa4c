"""Becomes the engine. Run as `python -I -S -c SOURCE`, with its order on fd 0 and a report pipe on fd 3.

A program of its own, because what happens between fork and exec of a process with threads must not be Python.
It ties the engine's life to the supervisor's, puts the signals back to their defaults, and execs; when it
cannot, one line on fd 3 says why. On success fd 3 closes by itself.
"""

import ctypes
import json
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
REPORT = 3
CANNOT_START = 127


def explain(error: OSError, argv: list[str], cwd: str | None) -> str:
    """One line: what could not be run, and why."""
    if cwd is not None and error.filename == cwd:
        return f"cannot start: working directory {cwd}: {error.strerror}"
    program = argv[0]
    if isinstance(error, FileNotFoundError):
        if os.path.isfile(program):
            return f"cannot start: the interpreter that {program} names in its first line does not exist"
        return f"cannot start: No such file: {program}"
    return f"cannot start: {error.strerror}: {program}"


def main() -> None:
    os.set_inheritable(REPORT, False)
    os.lseek(0, 0, os.SEEK_SET)
    with open(0, "rb", closefd=False) as file:
        order = json.load(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != order["parent"]:
        sys.exit("the supervisor ended before its engine could start")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        if order["cwd"] is not None:
            os.chdir(order["cwd"])
        os.execvpe(order["argv"][0], order["argv"], order["env"])
    except OSError as error:
        os.write(REPORT, explain(error, order["argv"], order["cwd"]).encode(errors="replace"))
        os._exit(CANNOT_START)


if __name__ == "__main__":
    main()
