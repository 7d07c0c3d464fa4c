"""Secrets reach the engine, and nothing and nobody else."""

import os
import sys

from tests.e2e.world import World, ask, engine
from tests.processes import command_line, free_port

SECRET = "s3cr3t-0123456789"


def test_a_secret_is_nowhere_but_in_the_engine(world: World) -> None:
    (world.folder / "key.txt").write_text(f"{SECRET}-file\n")
    port = free_port()
    env = {"TOKEN": "${env:MY_TOKEN}", "OTHER": "${file:key.txt}"}
    world.environ["MY_TOKEN"] = SECRET
    texts = []
    for answer in ("first", "second"):
        world.write(
            engine("a", "--answer", answer, port=port, env=env), engine("b", env={"B": "${env:MY_TOKEN}"})
        )
        texts += [
            world("validate", "sage.yaml").text,
            world("plan").text,
            world("plan", "--format", "json").text,
        ]
        texts += [world("apply", "--yes").ok().text]
    bad = engine("bad", "--exit-at-start", "1", "--exit-message", "no", env={"TOKEN": "${env:MY_TOKEN}"})
    world.write(engine("a", "--answer", "second", port=port, env=env), bad)
    texts += [world("plan", "-o", "plan.json").text, world("apply", "--yes", "--json").failed().text]
    looks = (("status",), ("status", "--json"), ("events",), ("events", "--json"), ("history", "--json"))
    texts += [world(*look).ok().text for look in looks]

    seen = ask(port, "/env")
    assert (seen["TOKEN"], seen["OTHER"]) == (SECRET, f"{SECRET}-file")
    assert seen["CUDA_VISIBLE_DEVICES"] == "", "an engine on the CPU sees no GPU"
    assert [text for text in texts if SECRET in text] == []
    files = [path for path in [*world.home.rglob("*"), world.folder / "plan.json"] if path.is_file()]
    assert len(files) > 8
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    lines = [command_line(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    assert [line for line in lines if SECRET in line] == []
    marks = [value for name, value in seen.items() if name == "SAGE_LAUNCH"]
    assert SECRET not in "".join(marks)
    assert (world.home.stat().st_mode & 0o777) == 0o700


def test_a_missing_secret_is_named_before_anything_is_stopped(world: World) -> None:
    port = free_port()
    world.write(engine("a", port=port))
    world.apply()
    before = world.until_ready("a#0")
    world.write(engine("a", port=port, env={"TOKEN": "${env:NOT_SET_ANYWHERE}"}))
    result = world("apply", "--yes").failed()
    assert "NOT_SET_ANYWHERE" in result.text
    assert world.until_ready("a#0") == before


def test_the_environment_of_the_shell_is_not_inherited(world: World) -> None:
    port = free_port()
    world.environ |= {"SHELL_NOISE": "1", "CUDA_VISIBLE_DEVICES": "5", "HF_HOME": "/models"}
    world.write(engine("a", port=port))
    world.apply()
    seen = ask(port, "/env")
    assert "SHELL_NOISE" not in seen
    assert seen["HF_HOME"] == "/models"
    assert seen["CUDA_VISIBLE_DEVICES"] == ""


def test_a_secret_is_hidden_whatever_its_variable_is_called(world: World) -> None:
    world.environ["MY_TOKEN"] = SECRET
    message = f"cannot sign in as {SECRET}"
    bad = engine(
        "bad",
        "--exit-at-start",
        "1",
        "--exit-message",
        message,
        env={"PLAIN": "${env:MY_TOKEN}", "OPEN": "sign"},
    )
    world.write(bad)
    text = world("apply", "--yes").failed().text
    [record] = world.home.rglob("exit.json")
    for told in (text, record.read_text()):
        assert "cannot sign in as ***" in told


def test_a_secret_is_hidden_when_sage_itself_reads_the_log(world: World) -> None:
    """An engine that never answers leaves no exit record in time: its last lines come from its log."""
    world.environ["MY_TOKEN"] = SECRET
    script = "import os, time; print('signed in as', os.environ['PLAIN'], flush=True); time.sleep(600)"
    silent = engine("silent", env={"PLAIN": "${env:MY_TOKEN}"})
    silent |= {"command": [sys.executable, "-c", script, "{port}"], "health": {"startup_timeout": "60s"}}
    world.write(silent)
    result = world("apply", "--yes", "--timeout", "2").failed()
    assert "signed in as ***" in result.text
    assert SECRET not in result.text
