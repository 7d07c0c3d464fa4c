"""What commands say to somebody who looks for an engine, a stack, an entry, or for what happened."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World, engine
from tests.processes import free_port


def record_of(world: World, *replicas: str) -> None:
    """Records of replicas that ran once, and beside them what a gateway leaves in the same folder."""
    for replica in replicas:
        launch = world.home / "run" / replica / "0123"
        launch.mkdir(parents=True)
        (launch / "engine.log").write_text(f"printed by {replica}\n")
    gateway = world.home / "run" / "gateway"
    gateway.mkdir(parents=True)
    (gateway / "worker.4711.json").write_text("{}")
    (gateway / "gateway.0").write_text("{}")


def entry_of(world: World, stack: str, number: int) -> None:
    """An entry of the history."""
    values: dict[str, Any] = {"number": number, "at": 1e9 + number, "stack": stack, "digest": f"d{number}"}
    values |= dict.fromkeys(("commit", "result", "summary", "base"), "") | {"document": {}}
    path: Path = world.home / "history" / stack / f"{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nosuch", "no engine named nosuch has run here; known: demo/a.b#1, demo/chat#0"),
        ("chta", "no engine named chta has run here; did you mean chat?"),
        ("demo/chta#0", "no engine named demo/chta#0 has run here; did you mean demo/chat#0?"),
        ("gateway", "no engine named gateway has run here; the gateway's log: `sage gateway logs`"),
        ("a", "no engine named a has run here; known: demo/a.b#1, demo/chat#0"),
    ],
)
def test_logs_of_an_unknown_engine_name_the_known_ones(world: World, name: str, told: str) -> None:
    record_of(world, "demo/chat.0", "demo/a.b.1")
    assert world("logs", name).failed().err == f"error: {told}\n"


def test_logs_of_an_engine_with_a_dot_in_its_name(world: World) -> None:
    record_of(world, "demo/chat.0", "demo/a.b.1")
    for name in ("a.b", "a.b#1", "demo/a.b#1"):
        assert world("logs", name).ok().out == "printed by demo/a.b.1\n"


def test_logs_where_nothing_ran(world: World) -> None:
    assert world("logs", "chat").failed().err == "error: no engine named chat has run here; known: none\n"


@pytest.mark.parametrize("command", ["history", "rollback"])
@pytest.mark.parametrize(
    ("name", "hint"), [("stagin", "did you mean staging?"), ("nosuch", "there are: production, staging")]
)
def test_an_unknown_stack_is_told(world: World, command: str, name: str, hint: str) -> None:
    for stack in ("production", "staging"):
        entry_of(world, stack, 1)
    result = world(command, "--stack", name).failed()
    assert (result.out, result.err) == ("", f"error: no stack named {name} was applied; {hint}\n")
    assert "d1" in world("history", "--stack", "staging").ok().out


def test_events_give_the_cause_at_the_beginning_and_the_time_at_the_end(world: World) -> None:
    world.write(engine("chat"), engine("bad", "--exit-at-start", "4"))
    world("apply", "--yes").failed()
    events = {(one["kind"], one["subject"]): one["message"] for one in world("events", "--json").json()}
    assert events["start begins", "demo/chat#0"] == "not running"
    done = events["start done", "demo/chat#0"]
    assert done.startswith("took ")
    assert float(done.removeprefix("took ").removesuffix(" s")) > 0
    assert "code 4" in events["start failed", "demo/bad#0"]


def test_rollback_says_which_entry_it_returns_to(world: World) -> None:
    port = free_port()
    world.write(engine("chat", "--answer", "first", port=port))
    world.apply()
    world.write(engine("chat", "--answer", "second", port=port))
    world.apply()
    first, _ = world("history", "--json").json()
    line = world("rollback", "--yes").ok().out.splitlines()[0]
    assert line.startswith(f"returning to entry 1 of demo ({first['digest']}, 2"), line
    world.until_ready("chat#0")


def test_a_watcher_says_how_things_are_and_when_each_step_was(world: World) -> None:
    world.write(engine("chat"))
    lines = world("watch", "--once").ok().out.splitlines()
    steps = [line for line in lines if " start chat#0" in line]
    assert len(steps) >= 2, "it begins and ends"
    assert [line for line in lines if line and line[2:6:3] != "::"] == []

    again = world("watch", "--once").ok().out.splitlines()
    assert [line[10:] for line in again] == [
        "watching sage.yaml",
        "No changes: 1 replica is as the stack says.",
        "done",
    ]
