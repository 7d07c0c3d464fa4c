"""`sage llm engine`: commands are edits of adhoc.yaml that the reconciler carries out."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.world import SAGE, TIMEOUT, World, ask, engine, kill
from tests.processes import free_port, is_alive

HEAD = "# mine\nversion: 1\nname: adhoc\n"


def with_fakes(world: World) -> Path:
    """adhoc.yaml with the runtime `fake`, so that the commands can start fake engines."""
    path = world.home / "stacks" / "adhoc.yaml"
    path.parent.mkdir(parents=True)
    runtime = {"kind": "command", "command": engine("any")["command"]}
    path.write_text(f"{HEAD}runtimes:\n  fake: {json.dumps(runtime)}\nengines: []\n")
    return path


def start(world: World, model: str, *options: str, port: int = 0) -> list[str]:
    where = ["--engine-port", str(port or free_port())]
    return ["llm", "engine", "start", model, "--runtime", "fake", *where, *options]


def rows(world: World) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in world("llm", "engine", "list", "--json").ok().json()["engines"]}


def test_an_engine_from_start_to_remove(world: World) -> None:
    path, port = with_fakes(world), free_port()
    started = world(*start(world, "org/My-Model", "--label", "main", "--max-concurrent", "7", port=port))
    assert f"my-model#0 is ready: org/My-Model at http://127.0.0.1:{port}/v1" in started.ok().out
    pids = world.until_ready("my-model#0", stack="adhoc")["my-model#0"]
    row = rows(world)["my-model"]
    expected = {"model": "org/My-Model", "kind": "llm", "port": port, "state": "ready", "gpus": []}
    assert {key: row[key] for key in expected} == expected
    assert row["pid"] == pids.engine
    table = world("llm", "engine", "list").ok().out.splitlines()
    assert table[0].split() == ["ID", "MODEL", "KIND", "PORT", "STATE", "GPU", "PID", "UPTIME"]
    assert table[1].split()[:5] == ["my-model", "org/My-Model", "llm", str(port), "ready"]
    text = world("llm", "export").ok().out
    assert text == path.read_text()
    assert text.startswith("# mine\n")
    assert "max_concurrent: 7" in text
    (entry,) = world("history", "--json").ok().json()
    assert (entry["stack"], entry["result"]) == ("adhoc", "done")

    world("llm", "engine", "stop", "my-model").ok()
    world.until_none()
    assert rows(world)["my-model"]["state"] == "stopped"
    world("llm", "engine", "remove", "my-model").ok()
    assert rows(world) == {}
    assert path.read_text().startswith("# mine\n")
    assert path.read_text().endswith("engines: []\n")


def test_dry_run_shows_the_plan_and_writes_nothing(world: World) -> None:
    path = with_fakes(world)
    before = path.read_bytes()
    assert "1 to start" in world(*start(world, "org/m", "--dry-run")).ok().out
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["adhoc.yaml"]
    assert not world.launches("adhoc")


def test_an_edit_that_does_not_validate_is_refused_and_nothing_is_written(world: World) -> None:
    path = with_fakes(world)
    before = path.read_bytes()
    result = world("llm", "engine", "start", "org/m", "--runtime", "fakee").failed()
    assert "fakee" in result.err
    assert "nothing was done" in result.err
    assert (
        world(*start(world, "org/m", "--arg", "x")).failed().err.startswith("error: --arg x: write KEY=VALUE")
    )
    assert path.read_bytes() == before
    path.write_text("version: 1\nname: adhoc\nengines: [{name: a, modle: b}]\n")
    told = world(*start(world, "org/m")).failed().err
    assert f"{path}:3:" in told
    assert "modle" in told


def test_a_start_that_fails_leaves_the_file_as_before_and_says_why(world: World) -> None:
    path = with_fakes(world)
    world(*start(world, "org/good")).ok()
    before = path.read_bytes()
    pids = world.until_ready("good#0", stack="adhoc")
    failed = world(
        *start(world, "org/bad", "--arg", "exit-at-start=3", "--arg", "exit-message=boom")
    ).failed()
    assert "boom" in failed.out
    assert "is as it was before" in failed.err
    assert path.read_bytes() == before
    assert world.until_ready("good#0", stack="adhoc") == pids
    routes = json.loads((world.home / "routing" / "routing.json").read_text())["routes"]
    assert "bad" not in {route["name"] for route in routes}


def test_a_stop_ends_the_whole_tree(world: World) -> None:
    """Once a signal went to the parent only, and its workers kept the GPU."""
    with_fakes(world)
    world(*start(world, "org/m", "--arg", "children=2", "--arg", "stubborn-children=true")).ok()
    pids = world.until_ready("m#0", stack="adhoc")["m#0"]
    children = Path(f"/proc/{pids.engine}/task/{pids.engine}/children").read_text().split()
    assert len(children) == 2
    world("llm", "engine", "stop", "m", "--force").ok()
    world.until_none()
    assert not any(is_alive(int(pid)) for pid in children)


def test_start_after_stop_keeps_every_option(world: World) -> None:
    """Once a restart forgot use_gpu, arguments, memory and port."""
    with_fakes(world)
    port = free_port()
    options = ["--no-gpu", "--arg", "a=1", "--arg", "b=two", "--label", "l", "--max-concurrent", "3"]
    world(*start(world, "org/m", *options, port=port)).ok()
    before = world.record("m#0", stack="adhoc")["mark"]
    argv = ask(port, "/argv")
    world("llm", "engine", "stop", "m").ok()
    world("llm", "engine", "start", "org/m").ok()
    after = world.record("m#0", stack="adhoc")["mark"]
    assert after["launch"] != before["launch"]
    assert {**after, "launch": ""} == {**before, "launch": ""}
    assert ask(port, "/argv") == argv


def test_a_model_that_loads_for_long_is_waited_for(world: World) -> None:
    """Once a model that was still loading was killed and started again, for ever."""
    with_fakes(world)
    counter = world.folder / "starts"
    world(*start(world, "org/m", "--arg", "ready-delay=4", "--arg", f"counter-file={counter}")).ok()
    assert counter.read_text() == "start\n"


def test_listing_changes_nothing_and_a_crash_is_shown(world: World) -> None:
    """Once listing engines disabled their restart, and a crash was shown as running."""
    path = with_fakes(world)
    world(*start(world, "org/m")).ok()
    pids = world.until_ready("m#0", stack="adhoc")["m#0"]
    before = path.read_bytes()
    rows(world)
    kill(pids.engine)
    again = world.until_ready("m#0", stack="adhoc")["m#0"]
    assert again.engine != pids.engine
    world("stop", "--all", "--yes").ok()
    assert rows(world)["m"]["state"] == "missing"
    assert path.read_bytes() == before


def test_replicas_of_one_model_are_told_apart(world: World) -> None:
    """Once two engines of one model were taken for each other."""
    with_fakes(world)
    world(*start(world, "org/m", "--name", "one")).ok()
    world(*start(world, "org/m", "--name", "two")).ok()
    pids = world.until_ready("one#0", "two#0", stack="adhoc")
    assert {name: row["pid"] for name, row in rows(world).items()} == {
        "one": pids["one#0"].engine,
        "two": pids["two#0"].engine,
    }
    world("llm", "engine", "stop", "adhoc/two#0").ok()
    assert world.until_ready("one#0", stack="adhoc") == {"one#0": pids["one#0"]}


def test_what_would_end_a_running_engine_is_asked_about(world: World) -> None:
    path = with_fakes(world)
    port = free_port()
    world(*start(world, "org/m", port=port)).ok()
    before = path.read_bytes()
    change = ["llm", "engine", "start", "org/m", "--arg", "xyz=1"]
    assert "pass --yes" in world(*change).failed().err
    assert path.read_bytes() == before
    world(*change, "--yes").ok()
    assert "--xyz" in ask(port, "/argv")
    assert "serves org/m" in world("llm", "engine", "start", "other/m").failed().err


def test_two_starts_at_once_both_end_up_in_the_file(world: World) -> None:
    path = with_fakes(world)
    commands = [start(world, f"org/m{number}", "--arg", "ready-delay=1") for number in (1, 2)]
    running = [
        subprocess.Popen([*SAGE, *words], cwd=world.folder, env=world.environ, stdout=subprocess.DEVNULL)
        for words in commands
    ]
    assert [process.wait(TIMEOUT) for process in running] == [0, 0]
    assert {"m1", "m2"} == rows(world).keys()
    assert path.read_text().count("- name: m") == 2
    world.until_ready("m1#0", "m2#0", stack="adhoc")


def test_interrupted_while_it_loads_the_file_says_what_runs(world: World) -> None:
    with_fakes(world)
    command = world.start(*start(world, "org/m", "--arg", "ready-delay=3"))
    command.says("waiting until it answers")
    command.signal(signal.SIGINT)
    assert command.end().rc == 1
    world.until_ready("m#0", stack="adhoc")
    assert rows(world)["m"]["state"] == "ready"
    assert "No changes" in world("plan", world.home / "stacks" / "adhoc.yaml").ok().out


def test_killed_while_it_loads_the_file_says_what_runs(world: World) -> None:
    with_fakes(world)
    command = world.start(*start(world, "org/m", "--arg", "ready-delay=2"))
    command.says("waiting until it answers")
    kill(command.pid)
    world.until_ready("m#0", stack="adhoc")
    assert "No changes" in world("plan", world.home / "stacks" / "adhoc.yaml").ok().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stop", "chta"], "did you mean chat?"),
        (["stop", "nobody"], "there are: chat"),
        (["strat"], 'Did you mean "start"?'),
    ],
)
def test_a_wrong_name_gets_the_near_one(world: World, words: list[str], told: str) -> None:
    path = with_fakes(world)
    path.write_text(HEAD + "engines: [{name: chat, model: m, state: stopped}]\n")
    assert told in world("llm", "engine", *words).failed().err


def test_a_file_at_fault_keeps_nobody_from_looking_and_stopping(world: World) -> None:
    path = with_fakes(world)
    assert "nothing runs" in world("llm", "stop").ok().out
    world(*start(world, "org/m")).ok()
    path.write_text("engines: [")
    listed = world("llm", "engine", "list")
    assert "ready" in listed.out
    assert f"note: {path}:1:" in listed.err
    assert f"{path}:1:" in world(*start(world, "org/n")).failed().err
    assert "the file stays as it is" in world("llm", "engine", "stop", "m").failed().err
    world.until_none()
    assert path.read_text() == "engines: ["


def test_engines_of_other_stacks_are_listed_and_left_alone(world: World) -> None:
    world.write(engine("chat"))
    world.apply()
    assert rows(world)["demo/chat"]["state"] == "ready"
    assert "sage stop demo/chat" in world("llm", "engine", "stop", "chat").failed().err
    world.until_ready("chat#0")
