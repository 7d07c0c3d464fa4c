"""Engines that do not start, and the edit of the stack file that mends them."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import FAKE_ENGINE, SAGE, World, ask
from tests.fake_vllm import write_package
from tests.processes import free_port
from tests.waiting import wait_until

STACK = """\
# ours
version: 1
name: demo
runtimes:
  fake: {{kind: vllm, python: {python}, env: {{PYTHONPATH: {package}}}}}
defaults:
  runtime: fake
  use_gpu: false
  args: {{max-model-len: 32768}}   # long prompts

engines:
  - name: chat
    model: org/model    # the main one
    port: {port}

  - name: other
    model: org/other
    port: {other}
    args: {{"max-model-len": 4096}}  # small
"""
MENDED = "    args: {max-model-len: 14752}\n"


@pytest.fixture
def text(world: World, tmp_path: Path) -> str:
    """A stack whose first engine asks for more tokens than fit."""
    package = write_package(tmp_path / "package")
    text = STACK.format(python=sys.executable, package=package, port=free_port(), other=free_port())
    world.write_text(text)
    return text


def mended(text: str) -> str:
    port_line = next(line for line in text.splitlines(True) if line.startswith("    port:"))
    return text.replace(port_line, port_line + MENDED, 1)


def test_the_edit_is_shown_and_written_only_when_asked(world: World, text: str) -> None:
    result = world("apply", "--yes").failed()
    assert "+    args: {max-model-len: 14752}" in result.out
    assert "sage.yaml:15: args.max-model-len: 32768 -> 14752" in result.out
    assert "`sage apply --accept-fixes`" in result.out
    other = world.until_ready("other#0")
    assert (world.folder / "sage.yaml").read_text() == text
    for command in ("plan", "status", "events"):
        assert (
            "a fix is known: args.max-model-len: 32768 -> 14752: sage apply --accept-fixes"
            in world(command).out
        )

    world("apply", "--yes", "--accept-fixes").ok()
    assert (world.folder / "sage.yaml").read_text() == mended(text)
    assert world.until_ready("chat#0", "other#0")["other#0"] == other["other#0"]
    assert "fixed chat: args.max-model-len" in world("history").out
    world.is_settled()


def test_one_command_applies_fixes_and_applies_again(world: World, text: str) -> None:
    world.write_text(text.replace("\n", "\r\n"))
    shown = world("apply", "--yes", "--accept-fixes", "--json").ok().json()
    assert shown["ok"]
    [written] = shown["written"]
    [change] = written["changes"]
    assert change == {
        "file": "sage.yaml",
        "line": 15,
        "path": "args.max-model-len",
        "before": 32768,
        "after": 14752,
    }
    assert (world.folder / "sage.yaml").read_bytes().decode() == mended(text).replace("\n", "\r\n")
    world.until_ready("chat#0", "other#0")


def test_json_tells_the_fix_of_what_failed(world: World, text: str) -> None:
    shown = world("apply", "--yes", "--json").failed().json()
    fixes: dict[str, Any] = {one["id"]: one["fix"] for one in shown["outcomes"]}
    assert fixes["start:other#0"] is None
    assert fixes["start:chat#0"]["changes"][0]["after"] == 14752
    assert shown["patches"][0]["diff"].startswith("--- sage.yaml\n")
    assert shown["written"] == []


def test_an_overlay_that_gives_the_value_is_the_one_that_is_edited(world: World, text: str) -> None:
    overlay = "engines:\n  - name: chat\n    args:\n      max-model-len: 65536 # for the demo\n"
    path = world.write_text(overlay, "prod.yaml")
    world("apply", "sage.yaml", "-f", "prod.yaml", "--yes", "--accept-fixes").ok()
    assert path.read_text() == overlay.replace("65536", "14752")
    assert (world.folder / "sage.yaml").read_text() == text


def test_what_set_says_is_not_in_a_file(world: World, text: str) -> None:
    arguments = ("apply", "--yes", "--accept-fixes", "--set", "engines.chat.args.max-model-len=50000")
    out = world(*arguments).failed().out
    assert "--set engines.chat.args.max-model-len=50000 wins over the file" in out
    assert (world.folder / "sage.yaml").read_text() == text


def test_a_taken_port_is_exchanged(world: World, tmp_path: Path) -> None:
    package = write_package(tmp_path / "package", own=100)
    port = free_port(2)
    stack = STACK.format(python=sys.executable, package=package, port=port, other=free_port())
    world.write_text(stack.replace("32768", "100"))
    stranger = subprocess.Popen(
        [sys.executable, str(FAKE_ENGINE), "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _answers(port), "the stranger listens")
        out = world("apply", "--yes").failed().out
        assert f"-    port: {port}\n" in out
        world("apply", "--yes", "--accept-fixes").ok()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    world.until_ready("chat#0", "other#0")


def _answers(port: int) -> bool:
    try:
        return bool(ask(port, "/v1/models"))
    except OSError:
        return False


def test_fixes_that_lead_nowhere_end(world: World, tmp_path: Path) -> None:
    """Each round the engine asks for less; a person has to look at that."""
    package = write_package(tmp_path / "package")
    server = package / "vllm" / "entrypoints" / "openai" / "api_server.py"
    server.write_text(
        server.read_text().replace("is 14752", "is {length - 1000}").replace('"Based on', 'f"Based on')
    )
    world.write_text(
        STACK.format(python=sys.executable, package=package, port=free_port(), other=free_port())
    )
    result = world("apply", "--yes", "--accept-fixes").failed()
    assert "this needs a person" in result.err
    assert "max-model-len: 28768" in (world.folder / "sage.yaml").read_text()


def test_it_asks_before_it_writes(world: World, text: str) -> None:
    """On a terminal: no is no, and the file is as it was."""
    world("apply", "--yes").failed()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SAGE, "apply", "--accept-fixes"],
        cwd=world.folder,
        env=world.environ,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.write(ours, b"n\n")
    out, _ = process.communicate(timeout=60)
    for handle in (ours, theirs):
        os.close(handle)
    assert process.returncode == 1
    assert "Write this and apply again?" in out
    assert "nothing was written" in out
    assert (world.folder / "sage.yaml").read_text() == text


def test_a_file_that_is_saved_meanwhile_wins(world: World, text: str) -> None:
    """Between the look and the edit somebody else wrote: their text stays."""
    world("apply", "--yes").failed()
    ours, theirs = pty.openpty()
    running = world.start("apply", "--accept-fixes", stdin=theirs)
    running.says("+    args: {max-model-len: 14752}")
    world.write_text(text.replace("# ours", "# theirs"))
    os.write(ours, b"y\n")
    result = running.end()
    for handle in (ours, theirs):
        os.close(handle)
    assert result.rc == 1
    assert "was changed meanwhile" in result.out
    assert (world.folder / "sage.yaml").read_text() == text.replace("# ours", "# theirs")


def test_a_stored_plan_cannot_be_edited(world: World, text: str) -> None:
    world("plan", "-o", "plan.json").ok()
    err = world("apply", "plan.json", "--accept-fixes").failed().err
    assert "stored plan" in err
    out = world("apply", "plan.json").failed().out
    assert "a stored plan cannot be edited" in out
    assert json.loads((world.folder / "plan.json").read_text())["kind"] == "sage-plan"


def test_the_watcher_tells_the_fix(world: World, text: str) -> None:
    running = world.start("watch", "sage.yaml")
    running.says("chat: a fix is known: args.max-model-len: 32768 -> 14752")
    assert (world.folder / "sage.yaml").read_text() == text
    world("apply", "sage.yaml", "--yes", "--accept-fixes")
    running.says("the file changed")
    world.until_ready("chat#0", "other#0")
