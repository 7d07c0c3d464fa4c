"""Whatever is killed or deleted, at any instant: the next plan sees what there is, and apply mends it."""

import shutil
import signal

import pytest

from tests.e2e.world import World, engine, kill
from tests.processes import free_port, is_alive, marked
from tests.waiting import wait_until

WORKERS = ("--children", "2", "--stubborn-children")


def test_the_run_directory_is_not_the_truth(world: World) -> None:
    world.write(engine("a"), engine("b"))
    world.apply()
    pids = world.until_ready("a#0", "b#0")
    shutil.rmtree(world.home / "run")
    world.is_settled()
    assert world.until_ready("a#0", "b#0") == pids, "the records come back"


def test_a_home_deleted_in_the_middle_of_everything(world: World) -> None:
    world.write(engine("a"))
    world.apply()
    pids = world.pids()
    shutil.rmtree(world.home)
    world.apply()
    assert world.until_ready("a#0") == pids
    world.is_settled()


def test_leftovers_of_a_killed_supervisor_are_reaped(world: World) -> None:
    """The engine dies with its supervisor; workers in sessions of their own, deaf to SIGTERM, do not."""
    world.write(engine("a", *WORKERS), engine("b"))
    world.apply()
    pids = world.until_ready("a#0", "b#0")
    old = pids["a#0"]
    wait_until(lambda: len(marked(old.launch)) == 4, "supervisor, engine and two workers")
    kill(old.supervisor)
    wait_until(lambda: not is_alive(old.engine), "the engine dies with its supervisor")
    assert len(marked(old.launch)) == 2

    orphans = world("status", "--json").ok().json()["orphans"]
    assert [(o["engine"], len(o["pids"])) for o in orphans] == [("a", 2)]
    actions = [step["action"] for step in world.plan()["steps"]]
    assert actions == ["reap", "start"]
    world.apply()
    assert marked(old.launch) == []
    new = world.until_ready("a#0", "b#0")
    assert new["a#0"].launch != old.launch
    assert new["b#0"] == pids["b#0"]
    world.is_settled()


def test_a_killed_supervisor_that_leaves_nothing_is_told(world: World) -> None:
    """By the plan, and by the events of the apply that mends it."""
    world.write(engine("a"))
    world.apply()
    old = world.pids()["a#0"]
    kill(old.supervisor)
    wait_until(lambda: not marked(old.launch), "the engine dies with its supervisor")
    reason = "not running: its supervisor ended without a word (killed, or a reboot)"
    assert [step["cause"] for step in world.plan()["steps"]] == [reason]
    world.apply()
    (begins, *_) = [line for line in world("events").ok().out.splitlines() if reason in line]
    assert "start begins     demo/a#0" in begins


def test_stop_ends_stubborn_workers_too(world: World) -> None:
    world.write(engine("a", *WORKERS, "--ignore-sigterm", rollout={"drain": "1s"}))
    world.apply()
    world("stop", "--all", "--yes").ok()
    assert marked(str(world.home)) == []


def test_a_killed_engine_is_restarted_by_its_supervisor(world: World) -> None:
    world.write(engine("a", restart={"backoff": "100ms", "backoff_max": "200ms"}))
    world.apply()
    before = world.until_ready("a#0")["a#0"]
    kill(before.engine)
    assert set(world.actions().values()) <= {"await"}, "it is kept, or waited for"
    world.apply()
    after = world.until_ready("a#0")["a#0"]
    assert after.supervisor == before.supervisor
    assert after.engine != before.engine
    (shown,) = world("status", "--json").ok().json()["engines"]
    assert shown["restarts"] == 1
    assert str(before.engine) in world("logs", "a", "--previous").ok().out


def test_apply_killed_while_engines_load(world: World) -> None:
    world.write(engine("a", "--listen-delay", "3"), engine("b", depends_on=["a"]))
    apply = world.start("apply", "--yes")
    apply.says("start a#0", "waiting")
    apply.signal(signal.SIGKILL)
    apply.end()
    loading = wait_until(world.pids, "the engine goes on loading")
    world.apply()
    assert world.until_ready("a#0", "b#0")["a#0"] == loading["a#0"]
    world.is_settled()


@pytest.mark.usefixtures("automatic_ports")
def test_apply_killed_in_mid_surge(world: World) -> None:
    """Two launches of one replica are left: the next apply makes one of them."""
    world.write(engine("a", port=None))
    world.apply()
    world.until_ready("a#0")
    world.write(engine("a", "--listen-delay", "3", port=None))
    apply = world.start("apply", "--yes")
    apply.says("replace a#0", "waiting")
    wait_until(lambda: len(world.launches().get("a#0", [])) == 2, "both launches run")
    apply.signal(signal.SIGKILL)
    apply.end()
    world.apply()
    world.until_ready("a#0")
    assert (
        "--listen-delay"
        in world.record("a#0", f"{world.pids()['a#0'].launch}/launch.json")["mark"]["spec"]["command"]
    )
    world.is_settled()


def test_apply_killed_in_mid_recreate(world: World) -> None:
    """The old one is gone and the new one loads: nothing is lost but time."""
    port = free_port()
    world.write(engine("a", port=port))
    world.apply()
    world.write(engine("a", "--listen-delay", "3", port=port))
    apply = world.start("apply", "--yes")
    apply.says("replace a#0", "waiting")
    apply.signal(signal.SIGKILL)
    apply.end()
    loading = wait_until(world.pids, "the new one")
    world.apply()
    assert world.until_ready("a#0") == loading
    world.is_settled()
