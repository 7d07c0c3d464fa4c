"""`sage gateway start --stack FILE`: the gateway and a watcher beside it, as real processes."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

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

    def is_closed(self) -> bool:
        return self.chat("a").status_code == 401

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self("gateway", "status", "--json").out)
        return told

    def watcher(self) -> int:
        """The pid of the one watcher."""
        [pid] = [process.pid for process in watchers(Home(self.home))]
        return pid

    def tidy(self) -> None:
        for process in [*members(Home(self.home)), *watchers(Home(self.home))]:
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


def test_keys_of_the_file(gate: Gate) -> None:
    """They are demanded, they are nowhere to be read, and a restart takes the file's new ones."""
    (gate.folder / "key").write_text("from-file\n")
    gate.file(workers=2, api_keys=["${env:DOOR}", "${file:key}"])
    gate("gateway", "start", "--stack", "sage.yaml", DOOR="from-env", SAGE_API_KEYS="neither").ok()
    assert gate.is_closed()
    assert [gate.chat("a", key).status_code for key in ("from-env", "from-file")] == [404, 404]
    assert gate.chat("a", "neither").status_code == 401
    assert gate.status()["workers"] == 2
    told = [path.read_text() for path in gate.home.rglob("*") if path.is_file()]
    told += [" ".join(process.cmdline()) for process in members(Home(gate.home))]
    assert not [text for text in told if "from-env" in text or "from-file" in text]

    before = gate.watcher()
    gate.file(workers=1, api_keys=["${file:key}"])
    assert gate.status()["needs_restart"] is True
    assert "`sage gateway restart` takes them over" in gate("gateway", "status").out
    gate("gateway", "restart").ok()
    assert gate.watcher() != before
    assert [gate.chat("a", key).status_code for key in ("from-env", "from-file")] == [401, 404]
    status = gate.status()
    assert (status["workers"], status["needs_restart"]) == (1, False)


def test_what_goes_before_what(gate: Gate) -> None:
    """The command line, then the file, then the environment; a restart keeps that."""
    gate.write(gateway={"port": free_port()})
    environ = {"SAGE_GATEWAY_PORT": str(free_port()), "SAGE_GATEWAY_HOST": "::1"}
    gate("gateway", "start", "--stack", "sage.yaml", "-p", str(gate.port), **environ).ok()
    assert gate.status()["address"] == f"http://[::1]:{gate.port}"
    gate.write(gateway={"port": free_port(), "host": "127.0.0.1"})
    gate("gateway", "restart").ok()
    assert gate.status()["address"] == gate.url
    assert gate.status()["watcher"]["file"] == str(gate.folder / "sage.yaml")


def test_the_environment_without_a_file(gate: Gate) -> None:
    fault = gate("gateway", "start", SAGE_GATEWAY_PORT="http").failed().err
    assert fault == "error: SAGE_GATEWAY_PORT is 'http', which is no port: 1 to 65535\n"
    gate("gateway", "start", SAGE_GATEWAY_PORT=str(gate.port)).ok()
    status = gate.status()
    assert (status["address"], status["watcher"], status["stack"]) == (gate.url, None, None)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda text: text.replace("port", "prot"), ["did you mean port?"]),
        (lambda text: text.replace("workers: 1", "workers: 0") + "nope: 1\n", ["workers", "nope"]),
    ],
)
def test_a_faulty_file_starts_nothing(gate: Gate, change: Callable[[str], str], faults: list[str]) -> None:
    gate.write_text(change(f"version: 1\ngateway:\n  port: {gate.port}\n  workers: 1\nengines: []\n"))
    told = gate("gateway", "start", "--stack", "sage.yaml").failed().err
    assert all(fault in told for fault in faults)
    assert told.startswith("sage.yaml:") or f"{gate.folder}/sage.yaml:" in told
    assert members(Home(gate.home)) == watchers(Home(gate.home)) == []


def test_keys_that_are_not_to_be_had(gate: Gate) -> None:
    gate.file(api_keys=["${env:DOOR}"])
    assert "DOOR is not set" in gate("gateway", "start", "--stack", "sage.yaml").failed().err
    told = gate("gateway", "start", "--stack", "sage.yaml", DOOR=" ").failed().err
    assert "gateway.api_keys[0]: the environment variable DOOR is not set" in told
    told = gate("gateway", "start", "--stack", "sage.yaml", DOOR="a,b").failed().err
    assert "a key cannot hold a comma" in told
    assert "a,b" not in told
    assert members(Home(gate.home)) == watchers(Home(gate.home)) == []


def test_a_watcher_that_is_missing_is_started(gate: Gate) -> None:
    """Beside a gateway that runs; another file is refused, the same one is no fault."""
    file = gate.file()
    gate("gateway", "start", "-p", str(gate.port)).ok()
    told = gate("gateway", "start", "--stack", file).ok().out
    assert "The gateway already runs" in told
    assert f"Started the watcher of {file}" in told
    assert "So does the watcher" in gate("gateway", "start", "--stack", file).ok().out
    other = gate.write(file="other.yaml", name="other")
    refused = gate("gateway", "start", "--stack", other).failed().err
    assert f"runs the watcher of {file}" in refused
    pid = gate.watcher()
    psutil.Process(pid).kill()
    wait_until(lambda: not is_alive(pid), "the watcher is gone")
    gate("gateway", "start", "--stack", file).ok()
    gate("gateway", "restart").ok()
    assert gate.watcher() != pid


def test_a_lost_watcher_is_seen(gate: Gate) -> None:
    file = gate.file()
    gate("gateway", "start", "--stack", file).ok()
    pid = gate.watcher()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the watcher is gone")
    told = gate("gateway", "status").ok().out
    assert f"The watcher of {file} does not run; `sage gateway start --stack {file}`" in told
    gate("gateway", "stop").ok()
    assert gate("gateway", "status").failed().out.startswith("The gateway does not run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground(gate: Gate, number: signal.Signals) -> None:
    """Both are children, both end with one signal, the engine stays."""
    gate.file(engine("a"))
    running = gate.start("gateway", "start", "--stack", "sage.yaml", "--foreground")
    running.says("watching")
    first = gate.until_ready("a#0")["a#0"]
    gate.answers("a")
    pid = gate.watcher()
    assert psutil.Process(pid).ppid() == running.pid
    running.signal(number)
    assert running.end().rc == 0
    assert not is_alive(pid)
    assert members(Home(gate.home)) == []
    assert gate.pids()["a#0"] == first


def test_foreground_without_its_watcher(gate: Gate) -> None:
    """A watcher that is lost is told, and the gateway goes on; a stop from elsewhere ends the command."""
    gate.file()
    running = gate.start("gateway", "start", "--stack", "sage.yaml", "--foreground")
    running.says("watching")
    wait_until(lambda: gate.status()["healthy"], "the gateway answers")
    os.kill(gate.watcher(), signal.SIGKILL)
    running.says("the watcher ended by SIGKILL; the gateway goes on")
    assert gate.status()["healthy"]
    gate("gateway", "stop").ok()
    assert running.end().rc == 0
