"""Real launches for the tests: a real supervisor and the fake engine, all ended after each test."""

import json
import os
import signal
import socket
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sage_reconcile.supervisor.spawn import start

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"
DEADLINE = 30.0

LIVE: dict[str, dict[str, Any]] = {
    "health": {
        "probe": "generate",
        "path": "/health",
        "startup_timeout": 20.0,
        "interval": 0.2,
        "timeout": 0.5,
        "failures": 2,
        "canary": None,
    },
    "restart": {"policy": "always", "max_attempts": 5, "window": 600.0, "backoff": 0.01, "backoff_max": 0.05},
}


def until(what: str, check: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """The first true value of `check`, polled; fails naming `what` when there is none in time."""
    end = time.monotonic() + deadline
    while not (value := check()):
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline:g} s: {what}")
        time.sleep(0.02)
    return value


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def is_alive(pid: int) -> bool:
    """A zombie is not alive: whether init has reaped it yet says nothing about us."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def marked(launch: str) -> dict[int, dict[str, str]]:
    """Living processes whose environment carries the launch, with that environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_alive(int(entry.name)):
            continue
        with suppress(OSError):
            pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            env = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            with suppress(ValueError):
                if json.loads(env.get("SAGE_LAUNCH", "{}")).get("launch") == launch:
                    found[int(entry.name)] = env
    return found


class Launch:
    """One launch under test. `options` are the fake engine's; change `order` before `start` for the rest."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.port = free_port()
        self.directory = directory / "run" / "stack" / "engine.0" / self.id
        engine = [sys.executable, str(FAKE_ENGINE), "--port", str(self.port), *options]
        self.order: dict[str, Any] = {
            "mark": {"launch": self.id, "replica": {"stack": "stack", "engine": "engine", "replica": 0}},
            "argv": engine,
            "env": {"PATH": os.environ["PATH"], "HUB_TOKEN": "hf_verysecret"},
            "cwd": None,
            "directory": str(self.directory),
            "live": {name: dict(part) for name, part in LIVE.items()} | {"drain": 10.0},
            "probe": {"url": f"http://127.0.0.1:{self.port}", "model": "fake", "headers": {}},
            "log": {"max_bytes": 1 << 20, "keep": 2},
        }
        self.pid = 0

    def live(self, part: str, **changes: object) -> "Launch":
        self.order["live"][part].update(changes)
        return self

    def start(self) -> "Launch":
        self.pid = start(self.order)
        return self

    def record(self, name: str = "launch.json") -> dict[str, Any]:
        """{} while there is none."""
        with suppress(FileNotFoundError):
            record: dict[str, Any] = json.loads((self.directory / name).read_text())
            return record
        return {}

    def log(self, name: str = "engine.log") -> str:
        with suppress(FileNotFoundError):
            return (self.directory / name).read_text()
        return ""

    def until_state(self, *states: str) -> dict[str, Any]:
        until(
            f"state {' or '.join(states)}, last {self.record()}", lambda: self.record().get("state") in states
        )
        return self.record()

    def until_gone(self) -> None:
        until("the supervisor leaves", lambda: not is_alive(self.pid))

    def engine_pid(self) -> int:
        until("an engine", lambda: self.record()["engine"])
        return int(self.record()["engine"]["pid"])

    def chat(self, timeout: float = DEADLINE) -> None:
        """One generation by a client of the engine."""
        body = json.dumps({"model": "fake", "messages": []}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", data=body)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            response.read()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def end(self) -> None:
        """Leaves nothing running, whatever the test has done to the supervisor."""
        if self.pid and is_alive(self.pid):
            self.signal()
            self.signal()
            with suppress(pytest.fail.Exception):
                until("the supervisor leaves", lambda: not is_alive(self.pid), 5.0)
        for pid in marked(self.id):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    """Makes launches; all of them are ended after the test."""
    launches: list[Launch] = []

    def make(*options: str) -> Launch:
        launches.append(Launch(tmp_path, *options))
        return launches[-1]

    yield make
    for each in launches:
        each.end()
