"""Versions of an engine program: installed by uv from a directory of wheels, planned, rolled, rolled back."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.e2e.world import World, ask
from tests.fake_vllm import write_wheel
from tests.processes import free_port
from tests.waiting import wait_until

STACK = """\
version: 1
name: demo
runtimes:
  vllm: {{kind: vllm, version: "{version}", index: ./wheels}}
engines:
  - name: chat
    model: org/model
    use_gpu: false
    port: {port}
    rollout: {{strategy: recreate}}
  - name: other
    model: org/other
    runtime: command
    command: [python3, nothing.py, "{{port}}"]
    state: stopped
"""


@pytest.fixture
def uv(world: World, tmp_path: Path) -> World:
    """A world with uv on its PATH, a cache of its own, and two versions of vllm in a directory."""
    beside = str(Path(sys.executable).parent)
    world.environ["PATH"] = f"{beside}{os.pathsep}{world.environ['PATH']}"
    world.environ |= {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_PYTHON": sys.executable}
    assert shutil.which("uv", path=world.environ["PATH"])
    for version in ("1.0", "1.1"):
        write_wheel(world.folder / "wheels", version)
    return world


def answer(port: int) -> str:
    """What the engine was started with: the version is in it."""
    argv: list[str] = ask(port, "/argv")
    return argv[-1]


def folders(world: World) -> list[str]:
    """Everything in SAGE_HOME/runtimes but the lock."""
    return sorted(path.name for path in (world.home / "runtimes").iterdir() if path.name != ".lock")


def test_an_upgrade_is_planned_rolled_and_reversible(uv: World) -> None:
    port = free_port()
    uv.write_text(STACK.format(version="1.0", port=port))
    plan = uv.plan()
    assert plan["steps"] == []
    assert plan["blocked"][0]["reason"] == "vllm 1.0 is not installed: run `sage runtime install vllm`"
    out = uv("runtime", "install", "vllm").ok().out
    assert "vllm 1.0: installed: " in out
    assert "vllm 1.0: is installed: " in uv("runtime", "install").ok().out
    uv.apply()
    assert answer(port) == "vllm 1.0"
    before = uv.until_ready("chat#0")

    uv.write_text(STACK.format(version="1.1", port=port))
    blocked = uv("apply", "--yes").failed()
    assert "vllm 1.1 is not installed" in blocked.out
    assert uv.pids() == before  # what serves goes on
    uv("runtime", "install").ok()
    [step] = uv.plan()["steps"]
    assert (step["action"], step["changes"]) == ("replace", ["program.version: 1.0 -> 1.1"])
    uv.apply()
    assert answer(port) == "vllm 1.1"
    uv.is_settled()

    uv("rollback", "--yes").ok()
    assert answer(port) == "vllm 1.0"


def test_what_is_there_and_what_may_be_removed(uv: World) -> None:
    port = free_port()
    uv.write_text(STACK.format(version="1.0", port=port))
    uv("runtime", "install").ok()
    (uv.home / "runtimes" / "transformers").symlink_to(Path(sys.prefix))
    uv.apply()
    uv.write_text(STACK.format(version="1.1", port=port))
    found = {one["folder"]: one for one in uv("runtime", "list", "--json").ok().json()}
    [old] = [one for one in found.values() if one["version"] == "1.0"]
    [new] = [one for one in found.values() if one["version"] == "1.1"]
    assert old["used_by"] == ["demo/chat#0"]
    assert old["size"] > 0
    assert (new["size"], new["wanted_by"]) == (None, ["vllm"])
    assert found["transformers"]["target"]
    text = uv("runtime", "list").ok().out
    assert "not installed" in text
    assert "demo/chat#0" in text

    assert "runs by" in uv("runtime", "remove", old["folder"]).failed().err
    assert "not made by sage" in uv("runtime", "remove", "transformers").failed().err
    assert "there is no nothing" in uv("runtime", "remove", "nothing").failed().err
    uv("stop", "--all", "--yes").ok()
    uv("runtime", "remove", old["folder"]).ok()
    assert folders(uv) == ["transformers"]


def _slow_uv(uv: World, folder: Path) -> tuple[Path, str]:
    """A uv that stops before it installs for as long as a file, the gate, is there; and the PATH with it."""
    gate, real = folder / "gate", shutil.which("uv", path=uv.environ["PATH"])
    gate.touch()
    slow = folder / "slow"
    slow.mkdir()
    script = f'#!/bin/sh\n[ "$1" = pip ] && while [ -e {gate} ]; do sleep 0.05; done\nexec {real} "$@"\n'
    (slow / "uv").write_text(script)
    (slow / "uv").chmod(0o755)
    return gate, f"{slow}{os.pathsep}{uv.environ['PATH']}"


def test_what_is_interrupted_is_not_taken_for_whole(uv: World, tmp_path: Path) -> None:
    """Killed in the middle, the next one begins anew; two at once build once."""
    gate, path = _slow_uv(uv, tmp_path)
    uv.write_text(STACK.format(version="1.0", port=free_port()))
    first = uv.start("runtime", "install", PATH=path)
    wait_until(lambda: any((uv.home / "runtimes").glob(".building-*/bin/python")), "the environment is begun")
    first.signal(signal.SIGKILL)
    first.process.wait()
    assert uv.plan()["blocked"]
    second = uv.start("runtime", "install", PATH=path)
    # The uv that was left behind still holds the lock, and writes.
    second.says("waiting: another sage is building an environment")
    gate.unlink()
    third = uv("runtime", "install")
    assert second.end().rc == 0
    third.ok()
    [folder] = folders(uv)
    record = json.loads((uv.home / "runtimes" / folder / "sage-runtime.json").read_bytes())
    assert record["program"]["version"] == "1.0"


def test_ctrl_c_leaves_nothing(uv: World, tmp_path: Path) -> None:
    _, path = _slow_uv(uv, tmp_path)
    uv.write_text(STACK.format(version="1.0", port=free_port()))
    running = uv.start("runtime", "install", PATH=path)
    wait_until(lambda: any((uv.home / "runtimes").glob(".building-*/bin/python")), "the environment is begun")
    running.signal(signal.SIGINT)
    assert running.end().rc == 130
    assert folders(uv) == []


def test_a_failure_leaves_nothing(uv: World) -> None:
    uv.write_text(STACK.format(version="9.9", port=free_port()))
    result = uv("runtime", "install").failed()
    assert "vllm==9.9" in result.err  # uv's own words
    assert "uv pip failed" in result.err
    assert folders(uv) == []
    assert (
        "pins no version of transformers; there are: vllm"
        in uv("runtime", "install", "transformers").failed().err
    )


def test_without_uv_it_says_how_to_get_it(world: World) -> None:
    world.write_text(STACK.format(version="1.0", port=free_port()))
    empty = world.folder / "bin"
    empty.mkdir()
    err = world("runtime", "install", PATH=str(empty)).failed().err
    assert "there is no uv" in err
    assert "pip install uv" in err
    assert not (world.home / "runtimes").exists()


def test_a_plan_for_a_described_fleet_needs_no_installation(world: World) -> None:
    world.write_text(STACK.format(version="1.0", port=free_port()))
    world.write_text("version: 1\nnodes:\n  - {name: lab, gpus: []}\n", "fleet.yaml")
    plan = world.plan("--inventory", "fleet.yaml")
    assert [step["action"] for step in plan["steps"]] == ["start"]
    assert plan["blocked"] == []


def test_doctor_knows_what_is_to_be_installed(uv: World) -> None:
    uv.write_text(STACK.format(version="1.0", port=free_port()))
    out = uv("doctor", "sage.yaml", "--import-timeout", "0").out
    assert "runtime vllm 1.0" in out
    assert "sage runtime install vllm" in out
    uv("runtime", "install").ok()
    out = uv("doctor", "sage.yaml", "--import-timeout", "0").out
    assert "sage runtime install vllm" not in out
    assert "runtime vllm 1.0" in out
