"""Engines on demand: gateway, watcher and fake engines that sleep, on a pretended GPU."""

import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import FAKE_ENGINE, Running, World, engine, kill
from tests.processes import free_port
from tests.waiting import wait_until

SERVER = f"import runpy\nrunpy.run_path({str(FAKE_ENGINE)!r}, run_name='__main__')\n"


class Fleet:
    """A stack on one pretended GPU of 80 GiB, its gateway and its watcher."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.port = free_port()
        world.environ |= {"SAGE_GPU_MOCK_COUNT": "1", "SAGE_GPU_MOCK_MEMORY_GB": "80"}
        package = world.folder / "vllm" / "entrypoints" / "openai"
        package.mkdir(parents=True)
        (package / "api_server.py").write_text(SERVER)

    def sleeper(self, name: str, *options: str, share: float = 0.6, **on_demand: Any) -> dict[str, Any]:
        """An engine of runtime vllm that is the fake engine, and so many shares of the GPU."""
        return {
            "name": name,
            "model": f"model-{name}",
            "runtime": "fake",
            "port": free_port(),
            "gpu_memory": share,
            "env": {"PYTHONPATH": str(self.world.folder)},
            "extra_args": list(options),
            "on_demand": on_demand,
        }

    def serve(self, *engines: dict[str, Any]) -> Running:
        """Gateway and watcher; the watcher."""
        runtimes = {"fake": {"kind": "vllm", "python": sys.executable}}
        self.world.write(*engines, runtimes=runtimes)
        self.world.start("gateway", "start", "--foreground", "--port", str(self.port))
        watcher = self.watch()
        wait_until(self._is_up, "the gateway answers")
        return watcher

    def watch(self) -> Running:
        watcher = self.world.start("watch", "sage.yaml", "--interval", "600")
        watcher.says("watching")
        return watcher

    def ask(self, name: str) -> tuple[int, str]:
        """The status of an answer, and the model that gave it or what is wrong."""
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "hi"}]})
        status, said = self._http("POST", "/v1/chat/completions", body)
        told = json.loads(said)
        return status, told.get("model") or told["error"]["message"]

    def _http(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"content-type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read()

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return self._http("GET", "/health")[0] == 200
        return False

    def states(self) -> dict[str, str]:
        found = self.world("status", "--json").ok().json()["engines"]
        return {one["engine"]: one["state"] for one in found}


@pytest.fixture
def fleet(world: World) -> Iterator[Fleet]:
    made = Fleet(world)
    yield made


def test_two_models_share_a_gpu_by_requests(fleet: Fleet) -> None:
    watcher = fleet.serve(fleet.sleeper("a", min_residency=0), fleet.sleeper("b", min_residency=0))
    for name in "ab":
        begun = time.monotonic()
        assert fleet.ask(name) == (200, f"model-{name}")
        print(f"first start of {name}: {time.monotonic() - begun:.2f} s")
    took = []
    for turn in range(10):
        name = "ab"[turn % 2]
        begun = time.monotonic()
        assert fleet.ask(name) == (200, f"model-{name}")
        took.append(time.monotonic() - begun)
    print("switches, s:", " ".join(f"{one:.2f}" for one in took))
    print(watcher.text[-3000:])
    assert fleet.states() == {"a": "asleep", "b": "ready"}
