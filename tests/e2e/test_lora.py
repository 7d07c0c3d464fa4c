"""LoRA adapters on real processes: loaded, asked for through the gateway, lost, and loaded again."""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_lossless import gateway_of
from tests.e2e.world import FAKE_ENGINE, World, ask, kill
from tests.processes import free_port
from tests.waiting import wait_until


@pytest.fixture
def runtime(world: World) -> dict[str, Any]:
    """A `runtimes` section whose vllm is the fake engine: called as `python -m vllm... --model ...`."""
    python = world.folder / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {FAKE_ENGINE} "$@"\n')
    python.chmod(0o755)
    return {"fake-vllm": {"kind": "vllm", "python": str(python)}}


def adapter(world: World, name: str, **config: Any) -> dict[str, str]:
    """An adapter's directory, and its entry of `lora`."""
    path = world.folder / "adapters" / name
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **config}))
    (path / "adapter_model.safetensors").write_bytes(b"")
    return {"name": name, "path": f"adapters/{name}"}


def chat(port: int, *lora: dict[str, str], **fields: Any) -> dict[str, Any]:
    runtime = {"runtime": "fake-vllm", "use_gpu": False, "port": port}
    return {"name": "chat", "model": "base", "lora": list(lora), **runtime, **fields}


def loaded(port: int) -> set[str]:
    return {entry["id"] for entry in ask(port, "/v1/models")["data"] if "parent" in entry}


def post(port: int, path: str, **body: Any) -> bytes:
    url, head = f"http://127.0.0.1:{port}{path}", {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return bytes(reply.read())


def answer(gateway: int, model: str) -> dict[str, Any]:
    """What the engine got, from a chat through the gateway."""
    chat = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    got: dict[str, Any] = json.loads(
        json.loads(post(gateway, "/v1/chat/completions", **chat))["echo"]["body"]
    )
    return got


def test_adapters_are_models_of_the_gateway(world: World, runtime: dict[str, Any]) -> None:
    port = free_port()
    sql, legal = adapter(world, "sql"), adapter(world, "legal")
    world.write(chat(port, sql), runtimes=runtime)
    world.apply()
    before = world.pids()
    with gateway_of(world) as gateway:
        assert answer(gateway, "sql")["model"] == "sql"
        assert answer(gateway, "chat")["model"] == "base"
        world.write(chat(port, sql, legal), runtimes=runtime)
        shown = world("plan").ok().out
        assert f"adapters: legal: (none) -> {world.folder}/adapters/legal" in shown
        world.apply()
        assert answer(gateway, "legal")["model"] == "legal"
        names = {entry["id"] for entry in ask(gateway, "/v1/models")["data"]}
        assert {"chat", "base", "sql", "legal"} <= names
        world.write(chat(port, legal), runtimes=runtime)
        world.apply()
        assert loaded(port) == {"legal"}
    assert world.pids() == before
    world.is_settled()
    (status,) = world("status", "--json").ok().json()["engines"]
    assert status["adapters"] == ["legal"]


def test_an_engine_that_lost_its_adapters_gets_them_again(world: World, runtime: dict[str, Any]) -> None:
    port = free_port()
    world.write(chat(port, adapter(world, "sql")), runtimes=runtime)
    watcher = world.start("watch", "--interval", "1")
    before = world.until_ready("chat#0")["chat#0"]
    watcher.says("ok", "start chat#0")
    with gateway_of(world) as gateway:
        assert answer(gateway, "sql")["model"] == "sql"
        kill(before.engine)
        assert answer(gateway, "sql")["model"] == "sql"
        assert world.record("chat#0")["restarts"] == 1
        # Somebody unloads it by hand, which only the next look can see.
        assert post(port, "/v1/unload_lora_adapter", lora_name="sql").startswith(b"Success")
        watcher.says("update   chat#0  adapters: sql:")
        wait_until(lambda: loaded(port) == {"sql"}, "the adapter is loaded again")
        assert answer(gateway, "sql")["model"] == "sql"
    assert world.pids()["chat#0"].supervisor == before.supervisor


def test_an_adapter_that_the_engine_refuses(world: World, runtime: dict[str, Any]) -> None:
    port = free_port()
    bad, good = adapter(world, "bad"), adapter(world, "good")
    (world.folder / "adapters" / "bad" / "adapter_model.safetensors").unlink()
    world.write(chat(port, bad, good), runtimes=runtime)
    told = world("apply", "--yes").failed()
    path: Path = world.folder / "adapters" / "bad"
    assert f"chat#0 did not load LoRA adapter bad from {path}: it answered 404" in told.text
    assert f"No adapter found for {path}" in told.text
    assert loaded(port) == {"good"}
    assert world.pids()["chat#0"]
    (path / "adapter_model.safetensors").write_bytes(b"")
    world.apply()
    assert loaded(port) == {"good", "bad"}
