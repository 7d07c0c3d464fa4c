"""Engines that do not get ready: why is said, the others go on, and what served goes on serving."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.world import FAKE_ENGINE, World, ask, engine
from tests.processes import free_port, marked
from tests.waiting import wait_until


def test_a_failure_is_explained_and_only_it_is_tried_again(world: World) -> None:
    bad = engine("bad", "--exit-at-start", "4", "--exit-message", "ValueError: no such quantization: q3")
    world.write(bad, engine("good"), engine("last", depends_on=["bad"]))
    out = world("apply", "--yes").failed().out
    assert "failed  start bad#0" in out
    assert "exit code 4" in out
    assert "| ValueError: no such quantization: q3" in out
    assert "skipped start last#0: waits for start bad#0, which failed" in out
    good = world.until_ready("good#0")

    causes = {step["engine"]: step["cause"] for step in world.plan()["steps"]}
    assert causes.keys() == {"bad", "last"}
    assert causes["bad"].startswith("not running: exited with code 4")
    world.write(engine("bad", port=bad["port"]), engine("good", port=_port(world, "good#0")))
    world.apply()
    assert world.until_ready("bad#0", "good#0")["good#0"] == good["good#0"]


def _port(world: World, replica: str) -> int:
    port: int = world.record(replica)["mark"]["placement"]["port"]
    return port


def test_a_missing_program_is_named(world: World) -> None:
    entry = engine("a") | {"command": ["no-such-server", "--port", "{port}"]}
    world.write(entry)
    out = world("apply", "--yes").failed().out
    assert "there is no program no-such-server to start" in out
    assert marked(str(world.home)) == []


def test_a_known_cause_is_named_with_what_to_do(world: World) -> None:
    message = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    world.write(engine("a", "--exit-at-start", "1", "--exit-message", message))
    out = world("apply", "--yes").failed().out
    first = next(line for line in out.splitlines() if line.startswith("  failed"))
    assert "memory" in first
    assert "(exit code 1)" in first


def test_a_port_held_by_a_stranger_is_blocked_and_the_stranger_untouched(world: World) -> None:
    port = free_port()
    stranger = subprocess.Popen(
        [sys.executable, str(FAKE_ENGINE), "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _listens(port), "the stranger listens")
        world.write(engine("a", port=port), engine("b"))
        result = world("apply", "--yes").failed()
        assert f"port {port}" in result.out
        assert f"process {stranger.pid} (" in result.out
        world.until_ready("b#0")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    world.apply()
    world.until_ready("a#0", "b#0")


def test_a_port_taken_after_the_plan_was_made_fails_the_step(world: World) -> None:
    """The stranger answers like an engine: nobody must take it for one."""
    port = free_port()
    world.write(engine("a", "--ready-delay", "1.5"), engine("b", port=port, depends_on=["a"]))
    apply = world.start("apply", "--yes")
    apply.says("start a#0", "waiting")
    stranger = subprocess.Popen(
        [sys.executable, str(FAKE_ENGINE), "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        out = apply.end().failed().out
        assert "ok      start a#0" in out
        assert "failed  start b#0" in out
        assert f"port {port} was taken by another process" in out
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    world.apply()
    world.until_ready("a#0", "b#0")


def test_a_port_taken_while_the_engine_loads_fails_the_step(world: World) -> None:
    port = free_port()
    world.write(engine("a", "--listen-delay", "600", port=port))
    apply = world.start("apply", "--yes")
    wait_until(lambda: world.launches(), "the engine loads")
    stranger = subprocess.Popen(
        [sys.executable, str(FAKE_ENGINE), "--port", str(port), "--model", "model-a"],
        stderr=subprocess.DEVNULL,
    )
    try:
        out = apply.end().failed().out
        assert "failed  start a#0" in out
        assert f"(process {stranger.pid}) listens on its port {port}" in out
        assert stranger.poll() is None
        assert '"ready"' not in (world.home / "routing" / "routing.json").read_text()
    finally:
        stranger.kill()
        stranger.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--die-on-request"], "exit code 9"),
        (["--never-ready"], "not ready within 3 s; its last probe: "),
        (["--ready-delay", "600"], "not ready within 3 s; its last probe: "),
        (["--listen-delay", "600"], "not ready within 3 s; its last probe: nothing listens on its port"),
    ],
)
def test_health_alone_is_not_readiness(world: World, options: list[str], words: str) -> None:
    """/health answers 200 for the first three; not one of them ever generates a token."""
    world.write(engine("a", *options, health={"startup_timeout": "3s"}))
    out = world("apply", "--yes").failed().out
    assert words in out
    reason = "exited with code 9" if "9" in words else "not ready within 3 s"
    assert world.plan()["steps"][0]["cause"].startswith(f"not running: {reason}")
    assert marked(str(world.home)) == []
    assert '"ready"' not in (world.home / "routing" / "routing.json").read_text()


def test_who_is_given_less_time_is_late_in_the_same_words(world: World) -> None:
    world.write(engine("a", "--listen-delay", "600"))
    out = world("apply", "--yes", "--timeout", "1.5").failed().out
    assert "not ready within 1.5 s; its last probe: nothing listens on its port" in out
    assert world.plan()["steps"][0]["cause"].startswith("not running: not ready within 1.5 s")
    assert marked(str(world.home)) == []


@pytest.mark.usefixtures("automatic_ports")
def test_a_failed_surge_leaves_the_old_one_serving(world: World) -> None:
    world.write(engine("a", port=None))
    world.apply()
    before = world.until_ready("a#0")
    routing = (world.home / "routing" / "routing.json").read_text()
    world.write(engine("a", "--exit-at-start", "1", port=None))
    out = world("apply", "--yes").failed().out
    assert "the old one goes on serving" in out
    assert world.pids() == before
    assert ask(_port_of(routing), "/v1/models")
    assert (world.home / "routing" / "routing.json").read_text() == routing
    assert world.actions() == {"a#0": "replace"}


def _port_of(routing: str) -> int:
    (backend,) = json.loads(routing)["backends"]
    return int(backend["url"].rpartition(":")[2])


def test_a_failed_recreate_starts_the_old_one_again(world: World) -> None:
    port = free_port()
    world.write(engine("a", "--answer", "old", port=port))
    world.apply()
    world.write(engine("a", "--exit-at-start", "1", port=port))
    out = world("apply", "--yes").failed().out
    assert "rolled back to what ran before" in out
    world.until_ready("a#0")
    assert "old" in ask(port, "/argv")
    assert f":{port}" in (world.home / "routing" / "routing.json").read_text()

    out = world("apply", "--yes", "--no-rollback").failed().out
    assert "--no-rollback" in out
    assert marked(str(world.home)) == []


def test_a_roll_stops_at_the_first_replica_that_fails(world: World) -> None:
    """Of two replicas the second keeps serving what the first could not be replaced by."""
    port = free_port(2)
    world.write(engine("a", "--answer", "old", port=port, replicas=2))
    world.apply()
    before = world.until_ready("a#0", "a#1")
    world.write(engine("a", "--exit-at-start", "1", port=port, replicas=2))
    out = world("apply", "--yes").failed().out
    assert "skipped replace a#1" in out
    after = world.until_ready("a#0", "a#1")
    assert after["a#1"] == before["a#1"]
    assert "old" in ask(port, "/argv")


def test_an_engine_whose_folder_is_gone(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    world.write(engine("a", cwd=str(folder)))
    world("validate", "sage.yaml").ok()
    folder.rmdir()
    text = world("apply", "--yes").failed().text
    assert str(folder) in text
