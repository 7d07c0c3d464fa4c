"""Child processes on chosen cores, and what a process tree used, from /proc."""

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[3]
TICK = os.sysconf("SC_CLK_TCK")
ASK_S = 10.0
STOP_S = 10.0


class BenchError(Exception):
    """A target could not be measured; the text says why."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def raise_file_limit() -> None:
    """As many open files as the hard limit allows: a thousand streams are two thousand sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_on_sigterm() -> None:
    """SIGTERM unwinds the blocks that end the children, as Ctrl-C does."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(stat_fields(int(entry))[1]), []).append(int(entry))
    tree = [root]
    for pid in tree:  # grows while it is walked
        tree += children.get(pid, [])
    return tree


def cpu_seconds(root: int) -> float:
    """User and system time of a process and its descendants, those that have ended included."""
    ticks = 0
    for pid in process_tree(root):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, stat_fields(pid)[11:15]))
    return ticks / TICK


def memory_mib(pid: int, field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of one process; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def peak_rss_mib(root: int) -> tuple[float, float]:
    """Peak resident memory: of all processes of a tree together, and of the largest of them."""
    peaks = [memory_mib(pid, "VmHWM") for pid in process_tree(root)]
    return sum(peaks), max(peaks)


def open_files(pid: int) -> int:
    """Open file descriptors of one process; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def python_module(name: str, *arguments: str) -> list[str]:
    """The command line of a module of this folder."""
    return [sys.executable, "-m", f"tests.bench.gateway.{name}", *arguments]


def environ() -> dict[str, str]:
    """This environment, in which the modules of the checkout are found from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def pinned(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """The command on these cores; anywhere where there are none."""
    where = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    return [*where, *command]


class Process:
    """A child process in a session of its own, ended with its whole session at the end of the block.

    `env` is its whole environment; without it, it finds the modules of the checkout.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        cores: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.started = time.monotonic()
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                pinned(command, cores),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environ() if env is None else env,
                cwd=log.parent,
                start_new_session=True,
            )
        self.pid = self.popen.pid

    def check(self) -> None:
        """Raises BenchError, with the end of its log, if it has ended."""
        if self.popen.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise BenchError(f"it exited with {self.popen.returncode}:\n{tail}")

    def kill(self) -> None:
        """SIGKILL to the session that this process leads."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(STOP_S)

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(STOP_S)
        self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def ask(
    port: int, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of one request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_S)
    try:
        kind = {"content-type": "application/json"} if body else {}
        connection.request("POST" if body else "GET", path, body, {**kind, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def seconds_to_ok(process: Process, send: Callable[[], tuple[int, bytes]], limit: float = 120.0) -> float:
    """Seconds from the start of the process to the first 200. Raises BenchError after `limit` seconds."""
    last: object = None
    while time.monotonic() - process.started < limit:
        process.check()
        try:
            last, _ = send()
        except (OSError, http.client.HTTPException) as error:
            last = error
        if last == 200:
            return time.monotonic() - process.started
        time.sleep(0.01)
    raise BenchError(f"no 200 in {limit:g} s; the last answer was: {last}")
