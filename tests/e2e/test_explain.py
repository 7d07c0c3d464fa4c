"""`sage plan --explain` with a model's files on the host that plans, against a described fleet."""

from pathlib import Path

import pytest

from tests.e2e.world import World
from tests.engines.checkpoints import llama_tensors, write_model
from tests.engines.configs import KNOWN

CONFIG = KNOWN["llama-3-8b"].config
INVENTORY = """\
version: 1
nodes:
  - name: gpu-a
    gpus: [{name: "NVIDIA H100 80GB HBM3", memory_mib: 81559, count: 2}]
"""
STACK = """\
version: 1
name: demo
engines:
  - {name: chat, kind: llm, model: org/llama, gpu_memory: 40GiB}
"""


@pytest.fixture
def described(world: World) -> Path:
    write_model(world.home / "models" / "org" / "llama", CONFIG, [dict(llama_tensors(CONFIG))])
    world.write_text(STACK)
    return world.write_text(INVENTORY, "host.yaml")


def test_text_json_and_markdown_say_the_same(world: World, described: Path) -> None:
    command = ("plan", "--inventory", str(described), "--explain", "chat")
    text = world(*command).ok().out
    assert "estimate for the fullest GPU, from safetensors headers and config.json:" in text
    assert "15,317 MiB  bfloat16" in text
    assert "taken: the tightest fit" in text
    said = world(*command, "--format", "json").ok().json()["explain"]
    assert said["estimate"]["parts"]["weights"] == 15317
    assert [gpu["is_taken"] for gpu in said["gpus"]] == [True, False]
    assert "15,317 MiB  bfloat16" in world(*command, "--format", "markdown").ok().out
    assert "explain" not in world("plan", "--inventory", str(described), "--format", "json").ok().json()


def test_a_start_that_must_fail_is_blocked(world: World, described: Path) -> None:
    change = ("--set", "engines.chat.args.max-model-len=400000", "--detailed-exitcode")
    blocked = world("plan", "--inventory", str(described), *change).failed(3).out
    assert "cannot start: " in blocked
    assert "lower max-model-len to " in blocked


def test_an_unknown_engine_is_a_mistake(world: World, described: Path) -> None:
    failed = world("plan", "--inventory", str(described), "--explain", "chta").failed(1)
    assert "did you mean chat?" in failed.err


def test_a_live_plan_reads_the_files_too(world: World, described: Path) -> None:
    world.environ |= {"SAGE_GPU_MOCK_COUNT": "1", "SAGE_GPU_MOCK_MEMORY_GB": "80"}
    said = world("plan", "--explain", "chat", "--format", "json").ok().json()["explain"]
    assert said["estimate"]["parts"]["weights"] == 15317
