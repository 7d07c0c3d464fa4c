"""Real launches without the real supervisor: a stand-in process carries the marks and starts an engine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.desired import Kind, LaunchSpec, LiveSpec, ReplicaId
from sage_reconcile.model.observed import Mark, Placement
from sage_reconcile.observe.records import launch_dir

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"

SUPERVISOR = """
import os, signal, subprocess, sys
env = {name: value for name, value in os.environ.items() if name != "SAGE_ROLE"}
subprocess.Popen(sys.argv[1:], env=env)
while True:
    signal.pause()
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def eventually(is_so: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def make_mark(
    home: Home,
    engine: str = "chat",
    replica: int = 0,
    launch: str = "l1",
    port: int | None = None,
    spec: LaunchSpec | None = None,
) -> Mark:
    return Mark(
        home=str(home.root),
        replica=ReplicaId("demo", engine, replica),
        fingerprint="f1",
        launch=launch,
        spec=spec or LaunchSpec(Kind.LLM, "command", "fake"),
        placement=Placement("here", port or free_port()),
        model="fake",
    )


@dataclass
class Launches:
    """Starts stand-in launches of one home, and ends whatever is left of them."""

    home: Home
    supervisors: list[subprocess.Popen[bytes]] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, mark: Mark, *options: str, is_listening: bool = True) -> subprocess.Popen[bytes]:
        """A supervisor with a fake engine of this mark; returns once the engine's port is open."""
        port = str(mark.placement.port)
        engine = [sys.executable, str(FAKE_ENGINE), "--port", port, "--model", mark.model, *options]
        process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, *engine],
            env={**os.environ, "SAGE_LAUNCH": codec.encode(mark).decode(), "SAGE_ROLE": "supervisor"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.supervisors.append(process)
        if is_listening:
            eventually(lambda: accepts(mark.placement.port), "the fake engine listens")
        else:
            eventually(lambda: bool(psutil.Process(process.pid).children()), "the engine is started")
        return process

    def sleeper(self, **environ: str) -> subprocess.Popen[bytes]:
        """A process that does nothing, with these variables in its environment."""
        process = subprocess.Popen(
            [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"],
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        self.others.append(process)
        return process

    def write_record(self, mark: Mark, state: str, /, **changes: object) -> Path:
        """A launch.json as the supervisor writes it."""
        directory = launch_dir(self.home, mark)
        directory.mkdir(parents=True, exist_ok=True)
        plain = {
            "version": 1,
            "mark": codec.to_plain(mark),
            "supervisor": {"pid": 1, "started": 1.5},
            "engine": None,
            "state": state,
            "since": 100.0,
            "ready_at": 120.0,
            "restarts": 2,
            "live": codec.to_plain(LiveSpec()),
            "message": "the supervisor's word",
            "next_attempt_at": None,
        }
        (directory / "launch.json").write_text(json.dumps(plain | changes))
        return directory

    def end(self) -> None:
        for process in [*self.supervisors, *self.others]:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        root = str(self.home.root)
        for process in psutil.process_iter():
            try:
                if root in process.environ().get("SAGE_LAUNCH", ""):
                    process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue


def write_exit(directory: Path, at: float, launch: str | None = None, **changes: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    plain = {
        "version": 1,
        "at": at,
        "launch": launch or directory.name,
        "pid": 77,
        "code": 1,
        "signal": None,
        "was_ready": True,
        "cause": "",
        "hint": "",
        "tail": ["last words"],
    }
    (directory / "exit.json").write_text(json.dumps(plain | changes))


def with_spec(mark: Mark, **changes: object) -> Mark:
    return replace(mark, spec=replace(mark.spec, **changes))  # type: ignore[arg-type]
