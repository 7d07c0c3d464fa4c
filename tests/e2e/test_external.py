"""External engines: routed to, told of when they do not answer, never owned."""

import json
from typing import Any

from tests.e2e.world import World, engine, stack_text
from tests.observe.scripted import scripted
from tests.processes import free_port

CHAT = "/v1/chat/completions"
ANSWERS = {CHAT: (200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}}]})}


def far(url: str, **fields: Any) -> dict[str, Any]:
    return {"name": "far", "kind": "llm", "model": "m", "runtime": "external", "url": url, **fields}


def routes(world: World) -> set[str]:
    table = json.loads((world.home / "routing" / "routing.json").read_bytes())
    return {route["name"] for route in table["routes"]}


def shown(world: World, *arguments: str) -> dict[str, Any]:
    """The one engine of `sage status`."""
    (entry,) = world("status", "--json", *arguments).ok().json()["engines"]
    return dict(entry)


def test_an_external_engine_that_is_down(world: World) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    note = "far (external) does not answer: connection refused"
    path = world.write(far(url))
    planned = world("plan", "--detailed-exitcode").failed(2).out
    assert "update   far#0  route: (none) -> far, m" in planned
    assert note in planned
    assert world.plan()["notes"] == [note]

    assert note in world.apply().out
    assert routes(world) == {"far", "m"}
    world.is_settled()
    assert note in world.apply().out

    line = next(line for line in world("status").ok().out.splitlines() if "demo/far#0" in line)
    assert line.split()[:6] == ["demo/far#0", "failing", "m", "external", url, "-"]
    path.unlink()  # what was published is enough
    entry = shown(world)
    assert (entry["id"], entry["state"], entry["pid"]) == ("demo/far#0@external", "failing", None)
    assert entry["message"] == "does not answer: connection refused"
    stopped = world("stop", "far", "--yes").failed()
    assert f"far is external ({url}): sage does not own it" in stopped.err


def test_an_external_engine_that_answers_and_dies(world: World) -> None:
    with scripted(ANSWERS) as server:
        world.write(far(server.url))
        assert "external)" not in world.apply().out
        assert shown(world)["state"] == "ready"
        world.is_settled()
    assert shown(world)["message"] == "does not answer: connection refused"
    world.write(file="empty.yaml")
    assert shown(world, "empty.yaml")["state"] == "failing"


def test_routes_of_external_engines_end_by_a_step(world: World) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    world.write(far(url))
    world.apply()
    world.write(far(url, state="stopped"))
    assert "state: stopped; route: far, m -> (none)" in world.apply().out
    assert routes(world) == set()
    world.is_settled()
    world.write(far(url))
    world.apply()
    world.write_text(stack_text([]))
    assert world.actions() == {"far#0": "update"}
    assert "no longer in the stack file; route: far, m -> (none)" in world.apply().out
    assert routes(world) == set()
    world.is_settled()


def test_stopping_another_engine_leaves_the_external_one_its_routes(world: World) -> None:
    with scripted(ANSWERS) as server:
        world.write(far(server.url, routing={"weight": 3}), engine("chat"))
        world.apply()
        world.until_ready("chat#0")
        world("stop", "chat", "--yes").ok()
        world.until_none()
        assert {"far", "m"} <= routes(world)
        assert world.actions() == {"chat#0": "start"}
