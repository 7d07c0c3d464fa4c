"""Two stacks in one SAGE_HOME, and two SAGE_HOMEs on one host: nobody touches what is not theirs."""

import os
import re
from collections.abc import Callable

import pytest

from tests.e2e.world import World, engine
from tests.processes import free_port


def test_two_stacks_in_one_home(world: World) -> None:
    world.write(engine("a"), name="one")
    world.write(engine("a"), file="two.yaml", name="two")
    world.apply()
    first = world.until_ready("a#0", stack="one")
    world.apply("two.yaml")
    second = world.until_ready("a#0", stack="two")
    assert world.pids("one") == first
    world.is_settled()

    world.write(name="one")
    world.apply()
    assert world.pids("one") == {}
    assert world.pids("two") == second
    assert {e["stack"] for e in world("status", "--json").ok().json()["engines"]} == {"two"}
    routing = (world.home / "routing" / "routing.json").read_text()
    assert "two/a#0" in routing
    assert "one/a#0" not in routing


def test_an_engine_of_two_stacks_must_be_named_in_full(world: World) -> None:
    for name in ("one", "two"):
        world.write(engine("a"), file=f"{name}.yaml", name=name)
        world.apply(f"{name}.yaml")
    assert "several stacks: one, two" in world("stop", "a", "--yes").failed().err
    assert "several stacks: one, two" in world("logs", "a").failed().err
    world("stop", "one/a", "--yes").ok()
    assert world.pids("one") == {}
    assert world.pids("two").keys() == {"a#0"}


def test_another_home_is_seen_and_left_alone(worlds: Callable[[str], World]) -> None:
    ours, theirs = worlds("ours"), worlds("theirs")
    port = free_port()
    theirs.write(engine("a", port=port))
    theirs.apply()
    their_pids = theirs.until_ready("a#0")

    # Other tests have engines of their own meanwhile.
    told = r"(1 engine of another SAGE_HOME runs here|\d+ engines of other SAGE_HOMEs run here); --all shows"
    assert re.search(told, ours("status").ok().out)
    assert "another SAGE_HOME: demo/a#0 (" in ours("status", "--all").ok().out
    assert ours("status", "--json").ok().json()["engines"] == []
    ours.write(engine("a", port=port), engine("b"))
    result = ours("apply", "--yes").failed()
    assert f"port {port}" in result.out
    assert "demo/a#0 of" in result.out
    ours("stop", "--all", "--yes").ok()
    ours.until_none()
    assert theirs.pids() == their_pids
    theirs.is_settled()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
def test_a_home_of_another_user_is_said_and_left_alone(world: World) -> None:
    world.write(engine("a"))
    world.home.mkdir(mode=0o755)
    os.chown(world.home, 65534, -1)
    told = f"SAGE_HOME {world.home} belongs to "
    changing = ("apply --yes", "watch", "stop --all", "stop --all --force", "restart --all", "rollback")
    for words in (*changing, "gateway start", "gateway stop", "gateway restart"):
        assert world(*words.split()).failed().err.startswith(f"error: {told}"), words
    assert list(world.home.iterdir()) == []
    assert f"cannot see processes of {os.uname().nodename}: {told}" in world("status").out
    assert "no engine of this SAGE_HOME is seen" in world("status").out
    plan = world.plan()
    assert plan["steps"] == []
    assert told in plan["held"][0]["reason"]
