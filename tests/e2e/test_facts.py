"""What an apply measures, `sage facts`, and what deleting it changes: numbers, and nothing that runs."""

import shutil
from typing import Any

from tests.e2e.world import World, engine, kill
from tests.waiting import wait_until


def facts(world: World, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world("facts", "--json", *arguments).ok().json()["facts"]
    return found


def test_facts_are_measured_listed_and_forgotten(world: World) -> None:
    assert "nothing was measured yet" in world("facts").ok().out
    world.write(engine("a"), engine("b"))
    world.apply()
    before = facts(world)
    assert [(fact["engine"], fact["gpu"]) for fact in before] == [("demo/a", ""), ("demo/b", "")]
    assert all(fact["start_seconds"] is not None for fact in before)
    world("stop", "a", "--yes").ok()
    (stopped,) = facts(world, "a")
    assert stopped["stop_seconds"] > 0
    assert stopped["start_seconds"] == before[0]["start_seconds"]
    assert "demo/a" in world("facts", "a").ok().out
    assert "nothing was measured of nobody; there is: demo/a, demo/b" in world("facts", "nobody").failed().err
    assert "--forget needs" in world("facts", "--forget").failed().err
    assert "forgotten: 1 fact\n" in world("facts", "demo/a", "--forget").ok().out
    assert [fact["engine"] for fact in facts(world)] == ["demo/b"]
    world("facts", "--forget", "--all").ok()
    assert facts(world) == []


def test_deleting_them_touches_no_process_and_a_restart_is_measured_again(world: World) -> None:
    world.write(engine("a", restart={"backoff": "50ms"}))
    world.apply()
    pids = world.pids()
    shutil.rmtree(world.home / "facts")
    world.is_settled()
    world.apply()
    assert world.pids() == pids
    (again,) = facts(world)
    assert again["start_seconds"] is not None
    kill(pids["a#0"].engine)
    wait_until(lambda: world.record("a#0").get("restarts") == 1, "its supervisor starts it again")
    world.until_ready("a#0")
    shutil.rmtree(world.home / "facts")
    world.apply()
    (measured,) = facts(world)
    assert measured["start_seconds"] is not None
