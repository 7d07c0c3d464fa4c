"""`sage gateway start --stack FILE`: the gateway and a watcher beside it, as real processes."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from sage_reconcile.cli.gatewaystatus import Shown, look
from sage_reconcile.errors import PermanentError, StackError
from sage_reconcile.gatewayd import GatewayOptions, find, find_watcher, restart, start_watcher, stop
from sage_reconcile.gatewayd.processes import members, watchers
from sage_reconcile.home import Home
from tests.e2e.world import World, engine
from tests.processes import free_port, is_alive
from tests.waiting import wait_until


class Gate(World):
    """A world with a gateway on a port of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder / "home")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def file(self, *engines: dict[str, Any], **gateway: Any) -> Path:
        """Writes sage.yaml, its gateway on this world's port."""
        return self.write(*engines, gateway={"port": self.port, **gateway})

    def chat(self, model: str, key: str = "") -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60)

    def answers(self, model: str, key: str = "") -> None:
        wait_until(lambda: self.chat(model, key).status_code == 200, f"{model} is answered")

    @property
    def sage_home(self) -> Home:
        return Home(self.home)

    def shown(self) -> Shown:
        """What `sage gateway status` would show, without the start of another process."""
        return look(self.sage_home, find(self.sage_home), find_watcher(self.sage_home))

    def options(self) -> GatewayOptions:
        """Those of the running gateway."""
        running = find(self.sage_home)
        assert running is not None
        return running.options

    def has_none(self) -> bool:
        return members(self.sage_home) == watchers(self.sage_home) == []

    def watcher(self) -> int:
        """The pid of the one watcher."""
        [pid] = [process.pid for process in watchers(self.sage_home)]
        return pid

    def tidy(self) -> None:
        for process in [*members(self.sage_home), *watchers(self.sage_home)]:
            process.kill()
        super().tidy()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "work")
    yield made
    made.tidy()


def test_start_edit_stop(gate: Gate) -> None:
    """Engines come up and are served; an edit is applied; a stop leaves the engines."""
    a = engine("a")
    gate.file(a)
    told = gate("gateway", "start", "--stack", "sage.yaml").ok().out
    assert f"{gate.url}/health" in told
    pid = gate.watcher()
    log = gate.home / "logs" / "watch-demo.log"
    assert f"watcher of {gate.folder / 'sage.yaml'}: pid {pid} (log: {log})" in told
    assert os.getsid(pid) == pid
    first = gate.until_ready("a#0")["a#0"]
    gate.answers("a")

    gate.file(a | {"aliases": ["other"]})
    gate.answers("other")
    assert gate.pids()["a#0"] == first

    status = gate("gateway", "status").ok().out
    assert f"watcher pid {pid}" in status
    assert "other options" not in status
    told = gate("gateway", "stop").ok().out
    assert f"Stopped the watcher of {gate.folder / 'sage.yaml'} (pid {pid})" in told
    assert "Stopped the gateway" in told
    assert not is_alive(pid)
    assert gate.pids()["a#0"] == first
    assert "the watcher ends; the engines stay" in log.read_text()


def test_keys_and_restart(gate: Gate) -> None:
    """Keys are demanded and nowhere to be read; a restart takes what the file says now, but keeps -p."""
    (gate.folder / "key").write_text("from-file\n")
    gate.write(gateway={"port": free_port(), "workers": 2, "api_keys": ["${env:DOOR}", "${file:key}"]})
    start = ("gateway", "start", "--stack", "sage.yaml", "-p", str(gate.port))
    gate(*start, DOOR="from-env", SAGE_API_KEYS="neither").ok()
    assert gate.chat("a").status_code == 401
    assert [gate.chat("a", key).status_code for key in ("from-env", "from-file", "neither")] == [
        404,
        404,
        401,
    ]
    assert gate.options().workers == 2
    assert not gate.shown().is_outdated
    told = [path.read_text() for path in gate.home.rglob("*") if path.is_file()]
    processes = members(gate.sage_home)
    assert len(processes) >= 3
    told += [" ".join(process.cmdline()) for process in processes]
    told += [" ".join(process.environ().values()) for process in processes]
    assert not [text for text in told if "from-env" in text or "from-file" in text]
    # The shell of this restart has no DOOR, and nor has the gateway: the watcher knows it.
    gate("gateway", "restart").ok()
    assert gate.chat("a", "from-env").status_code == 404
    shown = gate.shown()
    assert (shown.stack_fault, shown.is_outdated) == ("", False)

    before = gate.watcher()
    gate.write(gateway={"prot": 1})
    with pytest.raises(StackError, match="did you mean port"):
        restart(gate.sage_home)
    assert (gate.watcher(), gate.shown().is_healthy) == (before, True)
    gate.write(gateway={"api_keys": ["${file:key}"]})
    status = gate("gateway", "status").ok().out
    assert "other options than" in status
    assert "`sage gateway restart` takes them over" in status
    gate("gateway", "restart").ok()
    assert gate.watcher() != before
    assert [gate.chat("a", key).status_code for key in ("from-env", "from-file")] == [401, 404]
    assert (gate.options().workers, gate.options().port) == (1, gate.port)
    assert not gate.shown().is_outdated


def test_a_faulty_file_starts_nothing(gate: Gate) -> None:
    gate.write_text(f"version: 1\ngateway:\n  prot: {gate.port}\n  workers: 0\nengines: []\n")
    told = gate("gateway", "start", "--stack", "sage.yaml").failed().err.splitlines()
    assert len(told) == 2
    assert "sage.yaml:3:" in told[0]
    assert "did you mean port?" in told[0]
    assert "sage.yaml:4:" in told[1]
    assert gate.has_none()


def test_a_watcher_that_is_missing_is_started(gate: Gate) -> None:
    """Beside a gateway that runs. Another file is refused, the same one is no fault, a lost one is seen."""
    file = gate.file()
    gate("gateway", "start", "-p", str(gate.port)).ok()
    told = gate("gateway", "start", "--stack", file).ok().out
    assert "The gateway already runs" in told
    assert f"Started the watcher of {file}" in told
    assert "So does the watcher" in gate("gateway", "start", "--stack", file).ok().out
    other = gate.write(file="other.yaml", name="other")
    assert f"runs the watcher of {file}" in gate("gateway", "start", "--stack", other).failed().err
    gate("gateway", "restart").ok()
    pid = gate.watcher()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the watcher is gone")
    told = gate("gateway", "status").ok().out
    assert f"The watcher of {file} does not run; `sage gateway start --stack {file}`" in told


def test_a_port_that_is_taken_starts_nothing(gate: Gate) -> None:
    gate.file()
    with socket.create_server(("127.0.0.1", gate.port)):
        told = gate("gateway", "start", "--stack", "sage.yaml").failed().err
    assert f"port {gate.port}: it is held by process {os.getpid()}" in told
    assert gate.has_none()


def test_a_watcher_that_ends_at_start(gate: Gate) -> None:
    with pytest.raises(PermanentError, match=r"ended at start with code 1:\n(.|\n)*--nope"):
        start_watcher(gate.sage_home, "--nope", "demo", gate.environ)
    assert gate.has_none()


def test_foreground(gate: Gate) -> None:
    """Both are children, Ctrl-C ends both, the engine stays."""
    gate.file(engine("a"))
    running = gate.start("gateway", "start", "--stack", "sage.yaml", "--foreground")
    running.says("watching")
    first = gate.until_ready("a#0")["a#0"]
    gate.answers("a")
    pid = gate.watcher()
    assert psutil.Process(pid).ppid() == running.pid
    running.signal(signal.SIGINT)
    assert running.end().rc == 0
    assert gate.has_none()
    assert gate.pids()["a#0"] == first


def test_foreground_without_its_watcher(gate: Gate) -> None:
    """A watcher that is lost is told, and the gateway goes on; a stop from elsewhere ends the command."""
    gate.file()
    running = gate.start("gateway", "start", "--stack", "sage.yaml", "--foreground")
    running.says("watching")
    wait_until(lambda: gate.shown().is_healthy, "the gateway answers")
    os.kill(gate.watcher(), signal.SIGKILL)
    running.says("the watcher ended by SIGKILL; the gateway goes on")
    assert gate.shown().is_healthy
    stop(gate.sage_home)
    assert running.end().rc == 0
