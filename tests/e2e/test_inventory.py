"""`sage inventory`, and a plan against what it wrote."""

import json
import os
import stat

from tests.e2e.world import World, stack_text


def test_a_plan_against_the_description_is_that_of_the_host(world: World) -> None:
    pretended = {"SAGE_GPU_MOCK_COUNT": "2", "SAGE_GPU_MOCK_MEMORY_GB": "24"}
    written = world("inventory", "-o", "host.json", "--hardware", **pretended).ok()
    assert "2 GPUs" in written.out
    assert "pretended" in written.err
    world.write_text(stack_text([{"name": "big", "model": "m", "tensor_parallel": 2, "port": 20001}]))
    live = world("plan", **pretended).ok().out
    assert "GPU GPU-mock-0, GPU-mock-1, port 20001" in live
    elsewhere = world("plan", "--inventory", "host.json").ok().out
    assert elsewhere == "".join(line for line in live.splitlines(True) if "  note: " not in line)
    world("plan").failed()  # this host has none


def test_a_pipe_is_written_to_and_not_replaced(world: World) -> None:
    pipe = world.folder / "pipe"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        world("inventory", "--hardware", "-o", "pipe").ok()
        assert json.loads(reader.read())["version"] == 1
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert "cannot be written: Is a directory" in world("inventory", "-o", ".").failed().err


def test_a_mistake_in_the_variables_writes_nothing(world: World) -> None:
    failed = world("inventory", "-o", "host.json", SAGE_GPU_MOCK_COUNT="many").failed()
    assert "SAGE_GPU_MOCK_COUNT='many'" in failed.err
    assert not (world.folder / "host.json").exists()
