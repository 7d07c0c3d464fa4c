"""Plans: their exit status, stored ones, parts of a stack, and asking before anything is done."""

import contextlib
import os
import pty
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.world import World, engine
from tests.processes import free_port, marked


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """A stranger on the port: this very process."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        yield


def test_detailed_exit_status(world: World) -> None:
    port = free_port()
    world.write(engine("a", port=port))
    detailed = ("plan", "--detailed-exitcode")
    world(*detailed).failed(2)
    with listening(port):
        blocked = world(*detailed).failed(3).out
    assert f"port {port}" in blocked
    assert f"process {os.getpid()}" in blocked
    world.apply()
    assert "No changes" in world(*detailed).ok().out
    world.write_text("engines: [{name: a}]")
    world(*detailed).failed(1)


def test_a_stored_plan_is_applied_as_it_is_or_not_at_all(world: World) -> None:
    port = free_port()
    world.write(engine("a", port=port), engine("b"))
    world("plan", "-o", "plan.json").ok()
    (world.folder / "sage.yaml").unlink()
    world("apply", "plan.json").ok()
    world.until_ready("a#0", "b#0")

    world.write(engine("a", "--answer", "new", port=port))
    world("plan", "-o", "plan.json").ok()
    stopped = world.pids()["b#0"]
    world("stop", "b", "--yes").ok()
    refused = world("apply", "plan.json").failed().err
    assert "launch demo/b#0@" in refused
    assert f"{stopped.launch} is gone" in refused
    assert "plan again" in refused
    assert "--answer" not in world.record("a#0")["mark"]["spec"]["command"]


def test_a_dry_run_changes_nothing(world: World) -> None:
    world.write(engine("a"))
    assert "1 to start" in world("apply", "--dry-run").ok().out
    assert world("apply", "--dry-run", "--json").ok().json()["summary"]["start"] == 1
    assert marked(str(world.home)) == []
    assert world("history", "--json").ok().json() == []


def test_targets_overrides_and_overlays(world: World) -> None:
    port = free_port(2)
    world.write(engine("a", port=port), engine("b"))
    assert world.actions("--target", "b") == {"b#0": "start"}
    assert world.actions("--set", "engines.a.replicas=2") == {
        "a#0": "start",
        "a#1": "start",
        "b#0": "start",
    }
    world.write_text("engines:\n  - {name: b, state: stopped}\n", "overlay.yaml")
    assert world.actions("-f", "sage.yaml", "-f", "overlay.yaml") == {"a#0": "start"}
    world.apply("--target", "a", "--set", "engines.a.label=short")
    assert world.until_ready("a#0").keys() == {"a#0"}
    assert '"short"' in (world.home / "routing" / "routing.json").read_text()


def test_without_a_terminal_nothing_is_done_unasked(world: World) -> None:
    world.write(engine("a"))
    result = world("apply").failed()
    assert result.err.strip() == "error: there is no terminal to ask on: pass --yes to apply without asking"
    assert marked(str(world.home)) == []


@pytest.mark.parametrize(
    ("answer", "is_done"), [("no\n", False), ("\n", False), ("\x04", False), ("yes\n", True)]
)
def test_only_a_yes_is_a_yes(world: World, answer: str, is_done: bool) -> None:
    world.write(engine("a"))
    ours, theirs = pty.openpty()
    try:
        running = world.start("apply", stdin=theirs)
        os.write(ours, answer.encode())
        result = running.end()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (result.rc == 0) is is_done
    assert ("nothing was done" in result.out) is not is_done
    assert "fault" not in result.out
    assert bool(marked(str(world.home))) is is_done


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: the side of who types, and the side of the command."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_nobody_waits_for_somebody_who_thinks(world: World, terminal: tuple[int, int]) -> None:
    """What another sage did meanwhile makes another plan: it is shown, and asked for again."""
    ours, theirs = terminal
    a, b = engine("a"), engine("b")
    world.write(a, b)
    asked = world.start("apply", stdin=theirs)
    asked.says("2 to start")
    world.apply("--target", "a")
    os.write(ours, b"y\n")
    asked.says("the plan is no longer the same")
    asked.says("1 to start")
    os.write(ours, b"y\n")
    assert "ok      start b#0" in asked.end().ok().out
    world.until_ready("a#0", "b#0")


def test_a_stop_that_is_asked_for_holds_nobody_up(world: World, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    world.write(engine("a"))
    world.apply()
    asked = world.start("stop", "a", stdin=theirs)
    asked.says("1 to stop")
    world("stop", "a", "--yes").ok()
    os.write(ours, b"y\n")
    assert "No changes" in asked.end().ok().out


def test_no_wait_returns_before_the_engine_answers(world: World) -> None:
    world.write(engine("a", "--ready-delay", "2"))
    world.apply("--no-wait")
    assert world.actions() in ({"a#0": "await"}, {})
    assert world("plan", "--detailed-exitcode").ok().rc == 0
    world.apply()
    world.until_ready("a#0")
    world.is_settled()
