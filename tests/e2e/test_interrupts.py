"""Ctrl-C, two appliers at once, and disks that are full or may not be written."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.world import SAGE, World, engine
from tests.processes import free_port, marked


def test_ctrl_c_in_the_middle_leaves_nothing_half_done(world: World) -> None:
    world.write(
        engine("a"),
        engine("b", "--listen-delay", "2", depends_on=["a"]),
        engine("c", depends_on=["b"]),
    )
    apply = world.start("apply", "--yes")
    apply.says("start b#0", "waiting")
    apply.signal(signal.SIGINT)
    result = apply.end()
    assert result.rc == 1
    assert "interrupted; the engine goes on loading" in result.out
    assert "skipped start c#0" in result.out
    before = world.until_ready("a#0", "b#0")
    world.apply()
    after = world.until_ready("a#0", "b#0", "c#0")
    assert {name: after[name] for name in before} == before


def test_ctrl_c_during_a_replacement_brings_it_to_its_end(world: World) -> None:
    port = free_port()
    world.write(engine("a", port=port))
    world.apply()
    world.write(engine("a", "--listen-delay", "1", port=port))
    apply = world.start("apply", "--yes")
    apply.says("replace a#0", "waiting")
    apply.signal(signal.SIGINT)
    apply.end()
    world.until_ready("a#0")
    world.is_settled()


def test_the_second_apply_waits_and_finds_nothing_to_do(world: World) -> None:
    world.write(engine("a", "--listen-delay", "2"))
    first = world.start("apply", "--yes")
    first.says("start a#0", "waiting")
    second = world.start("apply", "--yes")
    second.says("waiting: process", str(first.pid), "is applying (sage apply --yes)")
    assert first.end().rc == 0
    result = second.end()
    assert result.rc == 0
    assert "No changes" in result.out
    assert len(world.pids()) == 1


@pytest.fixture
def tiny_disk(worlds: Callable[[str], World]) -> Iterator[World]:
    """A world whose SAGE_HOME is a file system of 64 KiB."""
    world = worlds("tiny")
    world.home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(world.home)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system, and not everywhere")
    try:
        yield world
    finally:
        world.tidy()
        subprocess.run(["umount", "--lazy", str(world.home)], check=True)


def fill(tiny_disk: World) -> None:
    with contextlib.suppress(OSError), (tiny_disk.home / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def test_a_full_disk_is_said(tiny_disk: World) -> None:
    fill(tiny_disk)
    tiny_disk.write(engine("a"))
    result = tiny_disk("apply", "--yes").failed()
    assert "No space left on device" in result.text
    assert marked(str(tiny_disk.home)) == []
    tiny_disk("status").ok()


def test_engines_run_on_when_the_disk_fills_up_and_can_be_stopped(tiny_disk: World) -> None:
    tiny_disk.write(engine("a"))
    tiny_disk.apply()
    pids = tiny_disk.until_ready("a#0")
    fill(tiny_disk)
    tiny_disk.is_settled()
    assert tiny_disk.pids() == pids
    result = tiny_disk("stop", "--all", "--yes").failed()
    assert "ok      stop a#0" in result.out
    assert "cannot publish routes" in result.err
    assert marked(str(tiny_disk.home)) == []


def test_what_a_full_disk_does_not_take_is_named(tiny_disk: World) -> None:
    port = free_port()
    tiny_disk.write(engine("a", port=port))
    tiny_disk.apply()
    fill(tiny_disk)
    told = tiny_disk("gateway", "start", "--port", str(free_port())).failed().err
    assert told == f"error: cannot use {tiny_disk.home}/run/gateway/gateway.json: No space left on device\n"
    tiny_disk.write(engine("a", port=port, health={"interval": "7s"}))
    out = tiny_disk("apply", "--yes").failed().out
    assert re.search(r"failed  update a#0.*: cannot write .*/live.json: No space left on device", out)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SAGE, "status"], env=tiny_disk.environ, stdout=full, stderr=subprocess.PIPE)
    assert done.stderr == b"error: cannot write the output: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_home_that_may_not_be_written(world: World) -> None:
    world.home.mkdir(mode=0o500)
    world.write(engine("a"))
    result = world("apply", "--yes").failed()
    assert result.err.startswith(f"error: cannot use SAGE_HOME {world.home}: ")
    assert marked(str(world.home)) == []


def test_a_home_that_is_a_file(world: World) -> None:
    world.home.write_text("")
    world.write(engine("a"))
    for command in (("apply", "--yes"), ("stop", "--all")):
        assert world(*command).failed().err.startswith(f"error: cannot use SAGE_HOME {world.home}: ")
    world("status").ok()


def test_a_home_in_a_folder_with_blanks(worlds: Callable[[str], World], tmp_path: Path) -> None:
    world = worlds("a folder, with {odd} 'signs'")
    world.write(engine("a"))
    world.apply()
    world.is_settled()
    world("stop", "--all", "--yes").ok()
    world.until_none()


def test_a_reader_that_leaves_does_not_stop_an_apply(world: World) -> None:
    """`sage apply --yes | grep -m 1 Plan`."""
    world.write(engine("a", "--listen-delay", "1"), engine("b", "--listen-delay", "1"))
    command = [*SAGE, "apply", "--yes"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=world.folder, env=world.environ, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout is not None
    assert any(line.startswith("Plan: ") for line in process.stdout)
    process.stdout.close()
    _, err = process.communicate()
    assert err == ""
    world.until_ready("a#0", "b#0")
    world.is_settled()
    assert "2 done" in world("history").ok().out
