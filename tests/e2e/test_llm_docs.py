"""The tutorials of docs/llm.md, line by line, on real processes; fake engines stand in for large models."""

import json
import re
import shlex

import pytest

from tests.docs.pages import text_of
from tests.e2e.test_llm_engine import rows
from tests.e2e.test_llm_serve import post
from tests.e2e.world import World, engine
from tests.processes import free_port

PAGE = "docs/llm.md"


def lines_of(title: str) -> list[list[str]]:
    """The words after `sage` of every command line of a section."""
    section = text_of(PAGE).partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^ {4}(sage .*)$", section, re.M)]


@pytest.fixture
def tutorial(world: World, automatic_ports: None) -> World:
    """A world with two pretended GPUs whose runtimes start fake engines."""
    path = world.home / "stacks" / "adhoc.yaml"
    path.parent.mkdir(parents=True)
    runtime = {"kind": "command", "command": engine("any")["command"]}
    runtimes = dict.fromkeys(("vllm", "transformers", "sentence-transformers"), runtime)
    path.write_text(f"version: 1\nname: adhoc\nruntimes: {json.dumps(runtimes)}\nengines: []\n")
    world.environ |= {"SAGE_GPU_MOCK_COUNT": "2", "SAGE_GPU_MOCK_MEMORY_GB": "80"}
    world.environ["SAGE_GATEWAY_PORT"] = str(free_port())
    return world


def test_serve_and_chat(tutorial: World) -> None:
    [body] = re.findall(r"-d '(\{.*\})'$", text_of(PAGE), re.M)
    begin, show, _, stop, large, _ = lines_of("Serve and chat")
    gateway = int(tutorial.environ["SAGE_GATEWAY_PORT"])
    try:
        tutorial(*begin).ok()
        answer = post(gateway, "/v1/chat/completions", json.loads(body))
        assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."  # type: ignore[index]
        assert "ready" in tutorial(*show).ok().out
        assert "Stopped the gateway" in tutorial(*stop).ok().out
        tutorial(*large).ok()
        listed = rows(tutorial)
        assert listed["chat"]["model"] == "Qwen/Qwen2.5-7B-Instruct"
        assert listed["chat"]["gpus"] == [0, 1]
        assert listed["embed"]["model"] == "BAAI/bge-m3"
        tutorial("llm", "restart").ok()
        assert rows(tutorial)["chat"]["gpus"] == [0, 1]
    finally:
        tutorial("llm", "stop", "--force")


def test_engine_management_and_export(tutorial: World) -> None:
    port = str(free_port())
    lines = lines_of("GPU monitoring and engine management")
    assert len(lines) == 9
    try:
        for line in lines:
            out = tutorial(*(port if word == "8902" else word for word in line)).ok().out
            if line[:3] == ["llm", "engine", "list"]:
                assert f"Qwen/Qwen2.5-7B-Instruct  llm   {port}  ready" in out
        assert rows(tutorial).keys() == {"all-minilm-l6-v2"}
        exported = tutorial("llm", "export").ok().out.replace("name: adhoc", "name: mine")
        tutorial.write_text(exported)
        tutorial("llm", "stop").ok()
        tutorial("apply", "sage.yaml", "--yes").ok()
        assert rows(tutorial)["mine/all-minilm-l6-v2"]["state"] == "ready"
        assert lines_of("From commands to a file in git")[2] == ["apply", "sage.yaml"]
    finally:
        tutorial("stop", "--all", "--force", "--yes")
