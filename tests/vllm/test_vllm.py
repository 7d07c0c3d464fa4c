"""A real vLLM on the CPU, through the whole of its life: `make test-vllm` sets its environment up."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.world import World
from tests.processes import marked
from tests.vllm.world import START, Places, Served, write_stack
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


def test_the_life_of_a_real_vllm(world: World, places: Places, served: Served) -> None:
    world.is_settled()
    first = world.pids()["chat#0"]
    assert "Paris" in served.ask()

    # An edit of args replaces it, and only that: the new one answers, nothing of the old one is left.
    old = {process.pid for process in marked(str(world.home)) if process.mark.get("launch") == first.launch}
    assert len(old) >= 3, "supervisor, API server and EngineCore carry the mark"
    write_stack(world, places.python, 2048, lora=[])
    plan = world.plan()
    assert [step["action"] for step in plan["steps"]] == ["replace"]
    assert "args.max-model-len: 1024 -> 2048" in plan["steps"][0]["cause"]
    served = Served.by(world)
    world.is_settled()
    assert not old & {process.pid for process in marked(str(world.home))}
    models = httpx.get(f"{served.engine}/v1/models", timeout=60.0).json()
    assert models["data"][0]["max_model_len"] == 2048
    assert "Paris" in served.ask("chat")

    # The API server is killed under a request: its client gets the answer of the one that is started next.
    second = world.pids()["chat#0"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.ask, ignore_eos=True, max_tokens=200)
        wait_until(served.running, "vLLM works on the request")
        os.kill(second.engine, signal.SIGKILL)
        assert "Paris" in answer.result(START)
    restarted = world.until_ready("chat#0")["chat#0"]
    assert (restarted.launch, restarted.supervisor) == (second.launch, second.supervisor)
    assert restarted.engine != second.engine

    # The supervisor is killed: PDEATHSIG ends the API server; EngineCore stays, known by its mark, and goes.
    os.kill(restarted.supervisor, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{restarted.engine}").exists(), "the API server dies too")
    left = [process.pid for process in marked(str(world.home)) if process.mark.get("launch") == second.launch]
    assert left, "EngineCore outlives a killed supervisor"
    assert {step["action"] for step in world.plan()["steps"]} == {"reap", "start"}
    world("stop", "--all", "--yes").ok()
    world("gateway", "stop").ok()
    world.until_none()
