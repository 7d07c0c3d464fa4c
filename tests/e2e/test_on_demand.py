"""Engines on demand: gateway, watcher and fake engines that sleep, on a pretended GPU."""

import contextlib
import http.client
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.world import FAKE_ENGINE, Running, World, engine, kill
from tests.gateway.hammer import Hammer
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
        wait_until(self._models, "the gateway knows the models")
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

    def _models(self) -> list[str]:
        with contextlib.suppress(OSError):
            return [one["id"] for one in json.loads(self._http("GET", "/v1/models")[1])["data"]]
        return []

    def states(self) -> dict[str, str]:
        found = self.world("status", "--json").ok().json()["engines"]
        return {one["engine"]: one["state"] for one in found}


@pytest.fixture
def fleet(world: World) -> Fleet:
    return Fleet(world)


def test_two_models_share_a_gpu_by_requests(fleet: Fleet) -> None:
    """Each is started once, then they take turns; no request fails, and nothing is killed for it."""
    watcher = fleet.serve(fleet.sleeper("a", min_residency=0), fleet.sleeper("b", min_residency=0))
    for name in "ab":
        assert fleet.ask(name) == (200, f"model-{name}")
    pids = fleet.world.pids()
    took = []
    for turn in range(8):
        name = "ab"[turn % 2]
        begun = time.monotonic()
        assert fleet.ask(name) == (200, f"model-{name}")
        took.append(time.monotonic() - begun)
    print("switches, s:", " ".join(f"{one:.2f}" for one in took))
    print(*(line for line in watcher.lines if "waited" in line), sep="")
    assert fleet.world.pids() == pids
    assert fleet.states() == {"a": "asleep", "b": "ready"}
    plan = fleet.world.plan()
    assert [step["action"] for step in plan["steps"]] == []


def test_busy_clients_of_two_models_lose_nothing(fleet: Fleet) -> None:
    """Everybody is served in turns; who was just loaded stays for a while, and no request is cut off."""
    fleet.serve(
        fleet.sleeper("a", "--request-delay", "0.05", min_residency="1s"),
        fleet.sleeper("b", "--request-delay", "0.05", min_residency="1s"),
    )
    for name in "ab":
        assert fleet.ask(name)[0] == 200
    with (
        Hammer(fleet.port, 2, model="a") as first,
        Hammer(fleet.port, 2, model="b") as second,
    ):
        for _ in range(2):
            first.goes_on()
            second.goes_on()
    assert first.failures == second.failures == [[], []]


def test_idle_engines_are_put_aside(fleet: Fleet) -> None:
    """One sleeps, one that cannot sleep is stopped, a pinned one stays."""
    plain = engine("c", on_demand={"idle_ttl": "1s"})
    watcher = fleet.serve(
        fleet.sleeper("a", share=0.3, idle_ttl="1s"),
        fleet.sleeper("b", share=0.3, idle_ttl="1s", pin=True),
        plain,
    )
    assert [fleet.ask(name)[0] for name in "abc"] == [200, 200, 200]
    wait_until(lambda: fleet.states() == {"a": "asleep", "b": "ready"}, "a sleeps, c is stopped")
    watcher.says("sleep", "a#0", "idle for")
    watcher.says("stop", "c#0", "idle for")
    assert [fleet.ask(name)[0] for name in "ac"] == [200, 200]


def test_nobody_reconciles(fleet: Fleet) -> None:
    """A watcher that comes back finds who waits. Where none comes, the answer says what is missing."""
    watcher = fleet.serve(fleet.sleeper("a"), fleet.sleeper("b"))
    assert fleet.ask("a")[0] == 200
    kill(watcher.pid)
    watcher = fleet.watch()
    assert fleet.ask("b") == (200, "model-b")
    kill(watcher.pid)
    assert fleet.ask("b")[0] == 200
    status, said = fleet.ask("a")
    assert status == 503
    assert "nobody reconciles its stack 'demo'" in said
    assert "`sage watch FILE`" in said
    fleet.watch()
    wait_until(lambda: fleet.ask("a")[0] == 200, "a is loaded")


def test_a_watcher_that_is_killed_midway_leaves_nothing_undone(fleet: Fleet) -> None:
    """Killed while it loads an engine for somebody: the next one brings it to its end, once."""
    watcher = fleet.serve(fleet.sleeper("a"), fleet.sleeper("b", "--ready-delay", "2"))
    assert fleet.ask("a")[0] == 200
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(fleet.ask, "b")
        watcher.says("start b#0: waiting until it answers")
        kill(watcher.pid)
        fleet.watch()
        assert answer.result() == (200, "model-b")
    assert set(fleet.world.pids()) == {"a#0", "b#0"}
    assert fleet.states() == {"a": "asleep", "b": "ready"}


def test_nobody_waits_for_what_somebody_else_asked_for(fleet: Fleet) -> None:
    """An engine that loads for long keeps the watcher from nothing."""
    slow = engine("c", "--ready-delay", "4", on_demand={})
    watcher = fleet.serve(slow, engine("d", on_demand={}))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(fleet.ask, "c")
        watcher.says("start c#0: waiting until it answers")
        assert fleet.ask("d") == (200, "model-d")
        assert not first.done()
        assert first.result() == (200, "model-c")
    assert set(fleet.world.pids()) == {"c#0", "d#0"}


def test_a_sleeper_that_dies_does_not_come_back_awake(fleet: Fleet) -> None:
    """Its memory is another one's by now. Who asks gets it all the same."""
    fleet.serve(fleet.sleeper("a", min_residency=0), fleet.sleeper("b", min_residency=0))
    assert [fleet.ask(name)[0] for name in "ab"] == [200, 200]
    before = fleet.world.pids()
    kill(before["a#0"].engine)
    wait_until(lambda: fleet.world.pids() == {"b#0": before["b#0"]}, "a is not started again")
    assert fleet.ask("a") == (200, "model-a")
    assert fleet.states() == {"a": "ready", "b": "asleep"}
