"""A real vLLM on the CPU, through the whole of its life: `make test-vllm` sets its environment up."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.world import World
from tests.processes import free_port, marked
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
START = 600.0
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def python() -> str:
    path = os.environ.get("SAGE_VLLM_PYTHON", "")
    if not Path(path).exists():
        pytest.fail("SAGE_VLLM_PYTHON names no Python with vLLM; run `make test-vllm`, which builds one")
    return path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    home = tmp_path / "home"
    home.mkdir()
    models = Path(os.environ.get("SAGE_TEST_MODELS", Path.home() / ".sage" / "models"))
    if not (models / MODEL).is_dir():
        pytest.fail(f"no {MODEL} in {models}; run `make demo-setup`")
    (home / "models").symlink_to(models)
    world = World(tmp_path / "work", home)
    yield world
    world("gateway", "stop", "--force")
    world("stop", "--all", "--force", "--yes")
    world.tidy()


def stack(world: World, python: str, max_model_len: int) -> None:
    runtime = {
        "kind": "vllm",
        "python": python,
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        "args": {"dtype": "float32", "enforce-eager": True, "gpu-memory-utilization": 0.1},
    }
    engine = {
        "name": "chat",
        "kind": "llm",
        "model": MODEL,
        "runtime": "vllm-cpu",
        "use_gpu": False,
        "label": "france",
        "args": {"max-model-len": max_model_len},
        "health": {"interval": "1s"},
        "restart": {"backoff": "100ms"},
    }
    world.write(engine, runtimes={"vllm-cpu": runtime})


def ask(port: int, model: str = "france") -> dict[str, Any]:
    body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 16}
    reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=120.0)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_the_life_of_a_real_vllm(world: World, python: str) -> None:
    stack(world, python, 1024)
    world.start("apply", "--yes").end(START).ok()
    world.is_settled()
    first = world.pids()["chat#0"]
    port = free_port()
    world("gateway", "start", "--port", str(port)).ok()
    assert "Paris" in ask(port)["choices"][0]["message"]["content"]

    # An edit of args replaces it, and only that: the new one answers, nothing of the old one is left.
    old = {process.pid for process in marked(str(world.home)) if process.mark.get("launch") == first.launch}
    assert len(old) >= 3, "supervisor, API server and EngineCore carry the mark"
    stack(world, python, 2048)
    plan = world.plan()
    assert [step["action"] for step in plan["steps"]] == ["replace"]
    assert "args.max-model-len: 1024 -> 2048" in plan["steps"][0]["cause"]
    world.start("apply", "--yes").end(START).ok()
    world.is_settled()
    assert not old & {process.pid for process in marked(str(world.home))}
    models = httpx.get(f"http://127.0.0.1:{_engine_port(world)}/v1/models", timeout=10.0).json()
    assert models["data"][0]["max_model_len"] == 2048
    assert "Paris" in ask(port, "chat")["choices"][0]["message"]["content"]

    # The supervisor is killed: PDEATHSIG ends the API server; EngineCore stays, known by its mark, and goes.
    second = world.pids()["chat#0"]
    os.kill(second.supervisor, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{second.engine}").exists(), "the API server dies with its supervisor")
    left = [process.pid for process in marked(str(world.home)) if process.mark.get("launch") == second.launch]
    assert left, "EngineCore outlives a killed supervisor"
    assert {step["action"] for step in world.plan()["steps"]} == {"reap", "start"}
    world("stop", "--all", "--yes").ok()
    world("gateway", "stop").ok()
    world.until_none()


def _engine_port(world: World) -> int:
    engines = world("status", "--json").json()["engines"]
    port: int = engines[0]["port"]
    return port
