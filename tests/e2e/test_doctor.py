"""`sage doctor` as a command: its exit status, and that nothing broken makes it fall over."""

import socket
import sys

from tests.e2e.world import World, engine
from tests.processes import free_port

QUIET = {"HF_HUB_OFFLINE": "1"}


def test_a_host_that_is_well_and_one_fault_of_each_kind(world: World) -> None:
    world.write(engine("chat"))
    told = world("doctor", "--json", **QUIET).json()
    faults = [one for one in told["checks"] if one["verdict"] == "fault"]
    assert faults == []
    assert told["summary"]["ok"] > 8
    assert {"about": "stack file", "verdict": "ok", "message": "sage.yaml: 1 engines", "next": ""} in (
        told["checks"]
    )

    with socket.create_server(("127.0.0.1", free_port())) as server:
        port = server.getsockname()[1]
        world.write(
            engine("chat", port=port),
            engine("none", command=["no-such-program", "--port", "{port}"]),
            {"name": "llm", "model": "m", "use_gpu": False, "runtime": "mine"},
            runtimes={"mine": {"kind": "vllm", "python": "/nowhere/python"}},
        )
        out = world("doctor", **QUIET).failed().out
    assert f"port {port}: chat pins it" in out
    assert "engine none: there is no program no-such-program" in out
    assert "there is no Python at /nowhere/python" in out
    assert f"engine chat: {sys.executable}" in out


def test_a_broken_file_and_a_broken_home(world: World) -> None:
    world.write_text("engines: [{name: a, modle: b}]")
    world.home.write_text("a file")
    out = world("doctor", **QUIET).failed().out
    assert 'unknown key "modle"' in out
    assert "is no folder" in out
    failing = world("doctor", SAGE_GPU_MOCK_COUNT="-3", HF_ENDPOINT="::").failed().out
    assert "SAGE_GPU_MOCK_COUNT='-3'" in failing
