# ruff: noqa: E501 - stack files of the first system, as they were
"""Placement on pretended GPUs, as the launched engine sees it; plans against a described fleet."""

from pathlib import Path

import pytest

from tests.e2e.world import World, ask, engine
from tests.processes import free_port

CUSTOM = """\
version: 1
name: my-custom-preset
description: several engines
engines:
  - {name: chat, kind: llm, model: Qwen/Qwen2.5-7B-Instruct, tensor_parallel: 2, port: 8901, label: main-chat}
  - {name: embed, kind: embedding, model: BAAI/bge-m3, port: 8090, use_gpu: true}
"""

PRODUCTION = """\
version: 1
name: production-stack
engines:
  - {name: chat-main, kind: llm, model: Qwen/Qwen2.5-7B-Instruct, tensor_parallel: 2, port: 8901, max_concurrent: 256, label: main-chat}
  - {name: chat-backup, kind: llm, model: Qwen/Qwen2.5-7B-Instruct, tensor_parallel: 2, port: 8902, label: backup-chat}
  - {name: embed, kind: embedding, model: BAAI/bge-m3, port: 8090, use_gpu: true, label: main-embed}
"""

INVENTORY = """\
version: 1
nodes:
  - name: gpu-a
    gpus: [{name: "NVIDIA H100 80GB HBM3", memory_mib: 81559, count: 8}]
"""


@pytest.fixture
def gpu_world(world: World) -> World:
    world.environ |= {"SAGE_GPU_MOCK_COUNT": "2", "SAGE_GPU_MOCK_MEMORY_GB": "80"}
    return world


def on_gpu(name: str, **fields: object) -> dict[str, object]:
    return engine(name, **fields) | {"use_gpu": True}


def test_engines_see_the_gpus_that_they_were_given(gpu_world: World) -> None:
    world = gpu_world
    ports = {name: free_port() for name in "abc"}
    world.write(
        on_gpu("a", port=ports["a"], gpu_memory="60GiB"),
        on_gpu("b", port=ports["b"], gpu_memory="60GiB"),
        on_gpu("c", port=ports["c"], gpu_memory="10GiB", gpus=[1]),
    )
    plan = world.plan()
    places = {step["engine"]: step["placement"]["gpus"] for step in plan["steps"]}
    assert sorted(len(gpus) for gpus in places.values()) == [1, 1, 1]
    assert places["a"] != places["b"]
    assert [gpu["peak_mib"] for gpu in plan["memory"]] == [61440, 71680]
    world.apply()
    seen = {name: ask(port, "/env")["CUDA_VISIBLE_DEVICES"] for name, port in ports.items()}
    assert sorted([seen["a"], seen["b"]]) == ["0", "1"]
    assert seen["c"] == "1"
    world.is_settled()

    status = world("status", "--json").ok().json()
    assert [gpu["is_mock"] for gpu in status["gpus"]] == [True, True]
    assert sorted(len(gpu["engines"]) for gpu in status["gpus"]) == [1, 2]

    world.write(
        on_gpu("a", port=ports["a"], gpu_memory="60GiB"),
        on_gpu("b", port=ports["b"], gpu_memory="60GiB"),
        on_gpu("c", port=ports["c"], gpu_memory="10GiB", gpus=[1]),
        on_gpu("d", gpu_memory="30GiB"),
    )
    blocked = world("plan", "--detailed-exitcode").failed(3).out
    assert "needs 30,720 MiB on 1 GPU" in blocked
    assert "GPU 0: 20,480 of 81,920 MiB free" in blocked
    assert "GPU 1: 10,240 of 81,920 MiB free" in blocked


def test_a_replacement_that_does_not_fit_beside_the_old_one_waits_for_its_memory(gpu_world: World) -> None:
    world = gpu_world
    port = free_port()
    world.write(on_gpu("a", port=port, gpu_memory="60GiB", gpus=[0]))
    world.apply()
    world.write(on_gpu("a", port=free_port(), gpu_memory="70GiB", gpus=[0]))
    (step,) = world.plan()["steps"]
    assert (step["action"], step["strategy"]) == ("replace", "recreate")
    assert "no room beside the old one" in step["reason"]
    world.apply()
    world.until_ready("a#0")
    world.is_settled()


def test_a_remedy_is_an_edit_that_set_takes(gpu_world: World) -> None:
    world = gpu_world
    world.write(on_gpu("a", gpu_memory="60GiB", gpus=[0]), on_gpu("b", gpu_memory="60GiB", gpus=[1]))
    world.apply()
    world.write(
        on_gpu("a", gpu_memory="60GiB", gpus=[0], port=world.record("a#0")["mark"]["placement"]["port"]),
        on_gpu("b", gpu_memory="60GiB", gpus=[1], port=world.record("b#0")["mark"]["placement"]["port"]),
        on_gpu("c", gpu_memory="30GiB"),
    )
    (blocked,) = world.plan()["blocked"]
    edits = [remedy["set"] for remedy in blocked["remedies"]]
    assert edits == ["engines.a.state=stopped", "engines.b.state=stopped"]
    assert f"would go with {edits[0]}: frees 61,440 MiB" in world("plan").failed().out
    for edit in edits:
        assert world.plan("--set", edit)["blocked"] == []


def test_more_gpus_than_there_are(gpu_world: World) -> None:
    gpu_world.write(on_gpu("a", tensor_parallel=4))
    result = gpu_world("apply", "--yes").failed()
    assert "needs 4 GPUs on one node (TP x PP), the largest node has 2" in result.out


@pytest.mark.parametrize(("text", "count"), [(CUSTOM, 2), (PRODUCTION, 3)])
def test_files_of_the_first_system_plan_as_they_are(world: World, text: str, count: int) -> None:
    world.write_text(text)
    world.write_text(INVENTORY, "host.yaml")
    world("validate", "sage.yaml").ok()
    plan = world.plan("--inventory", "host.yaml")
    assert plan["summary"]["start"] == count
    assert plan["blocked"] == []
    places = [(gpu, step["engine"]) for step in plan["steps"] for gpu in step["placement"]["gpus"]]
    assert {step["placement"]["node"] for step in plan["steps"]} == {"gpu-a"}
    chats = [gpu for gpu, name in places if name.startswith("chat")]
    assert len(chats) == len(set(chats)) == 2 * (count - 1)
    world("plan", "--inventory", "host.yaml", "--detailed-exitcode").failed(2)
    assert "error: " in world("plan", "--inventory", "host.yaml", "-o", "plan.json").failed().err
    assert not Path(world.folder / "plan.json").exists()


def test_every_fault_of_an_inventory_is_told(world: World) -> None:
    world.write_text(CUSTOM)
    world.write_text("version: 1\nnodes:\n  - {name: a, gpsu: []}\n", "host.yaml")
    err = world("plan", "--inventory", "host.yaml").failed().err
    assert "host.yaml:3:" in err
