"""Two real vLLM engines on one real GPU: memory, kills, replacement. For a GPU host: `make test-gpu`.

The model needs its config and tokenizer only (weights are made up), see docs/benchmarks.md for results.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.world import World
from tests.processes import free_port, marked
from tests.waiting import wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
START = 900.0
TOLERANCE_MIB = 6000
"""vLLM fills its share after a profile run; context and graphs come on top."""


class Measured:
    """What was measured, printed and written to $SAGE_TEST_RESULTS as it comes."""

    def __init__(self) -> None:
        self.begin = time.monotonic()

    def __call__(self, what: str, value: object) -> None:
        line = f"{time.monotonic() - self.begin:7.1f} s  {what}: {value}"
        print(line, flush=True)
        if path := os.environ.get("SAGE_TEST_RESULTS"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(Path(os.environ["SAGE_TEST_MODELS"]).absolute())
    world = World(tmp_path / "work", home)
    del world.environ["SAGE_DISABLE_NVML"]
    world.environ["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    yield world
    world("gateway", "stop", "--force")
    world.start("stop", "--all", "--force", "--yes").end(120.0)
    world.tidy()


def write(world: World, a_len: int = 2048, **memory: str | float) -> None:
    env = {"HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    if path := os.environ.get("PYTHONPATH"):
        env["PYTHONPATH"] = path
    runtime = {
        "kind": "vllm",
        "python": os.environ["SAGE_VLLM_PYTHON"],
        "env": env,
        "args": {"load-format": "dummy", "enforce-eager": True},
    }
    engines = [
        {
            "name": name,
            "kind": "llm",
            "model": MODEL,
            "runtime": "vllm-gpu",
            "gpu_memory": size,
            "args": {"max-model-len": a_len if name == "a" else 2048},
            "health": {"interval": "1s"},
            "restart": {"backoff": "100ms"},
        }
        for name, size in ({"a": "30GiB", "b": 0.3} | memory).items()
    ]
    world.write(*engines, runtimes={"vllm-gpu": runtime})


def gpu(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world("status", "--json").json()["gpus"][0]
    return found


def timed(world: World, measured: Measured, what: str, *arguments: str) -> str:
    begin = time.monotonic()
    result = world.start(*arguments).end(START).ok()
    measured(what, f"{time.monotonic() - begin:.1f} s")
    return result.out


def test_two_engines_on_one_gpu(world: World) -> None:
    measured = Measured()
    free = gpu(world)
    measured("gpu", json.dumps(free))
    assert free["memory_total_mib"] > 40_000
    assert not free["is_mock"]

    write(world)
    plan = world.plan()
    assert [(step["id"], step["after"] + step.get("behind", [])) for step in plan["steps"]] in (
        [("start:a#0", []), ("start:b#0", ["start:a#0"])],
        [("start:b#0", []), ("start:a#0", ["start:b#0"])],
    )
    print(timed(world, measured, "apply of two engines, one after the other", "apply", "--yes"))
    world.is_settled()
    total = free["memory_total_mib"]
    by_engine = {one["engine"]: one for one in world("status", "--json").json()["engines"]}
    measured("MiB by engine", {name: one["gpu_memory_mib"] for name, one in by_engine.items()})
    assert abs(by_engine["a"]["gpu_memory_mib"] - 30 * 1024) < TOLERANCE_MIB
    assert abs(by_engine["b"]["gpu_memory_mib"] - 0.3 * total) < TOLERANCE_MIB
    measured("foreign MiB", gpu(world)["foreign_mib"])

    port = free_port()
    world("gateway", "start", "--port", str(port)).ok()
    body = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60.0)
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["completion_tokens"] == 4

    write(world, c=0.9)
    blocked = world.plan()["blocked"]
    measured("blocked", blocked)
    assert [one["engine"] for one in blocked] == ["c"]
    assert "MiB free" in blocked[0]["reason"]
    write(world, b=0.7)
    (step,) = world.plan()["steps"]
    measured("strategy of what does not fit beside", f"{step['strategy']}: {step['reason']}")
    assert step["strategy"] == "recreate"

    before = world.pids()
    write(world, a_len=1024)
    (step,) = world.plan()["steps"]
    assert (step["strategy"], step["engine"]) == ("surge", "a")
    timed(world, measured, "surge of a", "apply", "--yes")
    world.is_settled()
    assert world.pids()["b#0"] == before["b#0"]
    assert not Path(f"/proc/{before['a#0'].engine}").exists()

    kill_engine(world, measured)
    kill_supervisor(world, measured)
    timed(world, measured, "stop of everything", "stop", "--all", "--yes")
    after = gpu(world)["memory_used_mib"]
    measured("MiB used before and after it all", f"{free['memory_used_mib']} {after}")
    assert abs(after - free["memory_used_mib"]) < 600


def kill_engine(world: World, measured: Measured) -> None:
    """SIGKILL of the API server: EngineCore goes too, and the supervisor starts the engine again."""
    old = world.pids()["b#0"]
    tree = {process.pid for process in marked(str(world.home)) if process.mark.get("launch") == old.launch}
    used = gpu(world)["memory_used_mib"]
    begin = time.monotonic()
    os.kill(old.engine, signal.SIGKILL)
    left = tree - {old.supervisor}
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), "its whole tree ends", 30.0)
    measured("after SIGKILL of the API server its tree was gone in", f"{time.monotonic() - begin:.2f} s")
    is_back = lambda: gpu(world)["memory_used_mib"] < used - 10_000  # noqa: E731
    wait_until(is_back, "its memory is back", 30.0)
    measured("and its memory back in (with the time of a look)", f"{time.monotonic() - begin:.2f} s")
    ready = lambda: world.record("b#0").get("state") == "ready" and world.record("b#0")["restarts"] == 1  # noqa: E731
    wait_until(ready, "the supervisor has it ready again", START)
    measured("and it was ready again in", f"{time.monotonic() - begin:.1f} s")


def kill_supervisor(world: World, measured: Measured) -> None:
    """SIGKILL of the supervisor: EngineCore stays with its memory; the next apply ends it and starts anew."""
    old = world.pids()["b#0"]
    os.kill(old.supervisor, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{old.engine}").exists(), "the API server dies with its supervisor")
    orphans = world("status", "--json").json()["orphans"]
    measured("orphans", orphans)
    assert [one["engine"] for one in orphans] == ["b"]
    steps = world.plan()["steps"]
    assert {step["action"] for step in steps} == {"reap", "start"}
    (start,) = (step for step in steps if step["action"] == "start")
    assert start["after"] or start.get("behind"), "the start waits until the leftovers' memory is back"
    print(timed(world, measured, "reap and start", "apply", "--yes"))
    world.is_settled()
    assert not any(Path(f"/proc/{pid}").exists() for one in orphans for pid in one["pids"])
