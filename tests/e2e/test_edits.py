"""An edit of the stack file touches what it must and nothing else: least disruption, on real processes."""

from tests.e2e.world import World, ask, engine, stack_text
from tests.processes import free_port


def test_edits_that_no_process_notices(world: World) -> None:
    """Comments, order, labels, aliases, concurrency, health and restart settings: not one PID changes."""
    ports = {"a": free_port(), "b": free_port()}
    world.write(engine("a", port=ports["a"]), engine("b", port=ports["b"]))
    world.apply()
    pids = world.until_ready("a#0", "b#0")
    world.is_settled()

    text = stack_text([engine("b", port=ports["b"]), engine("a", port=ports["a"])])
    world.write_text("# a comment\n" + text.replace("engines:", "engines:  # in another order"))
    world.is_settled()

    a = engine("a", port=ports["a"], label="main", aliases=["other-name"], max_concurrent=7)
    world.write(a, engine("b", port=ports["b"]))
    (step,) = world.plan()["steps"]
    assert (step["action"], step["engine"]) == ("update", "a")
    assert "route: " in step["cause"]
    world.apply()
    world.is_settled()
    assert "other-name" in (world.home / "routing" / "routing.json").read_text()

    a |= {"health": {"interval": "2s"}, "restart": {"max_attempts": 9}}
    world.write(a, engine("b", port=ports["b"]))
    (step,) = world.plan()["steps"]
    assert step["action"] == "update"
    assert {"health.interval: 10.0 -> 2.0", "restart.max_attempts: 5 -> 9"} <= set(step["changes"])
    world.apply()
    assert world.record("a#0")["live"]["health"]["interval"] == 2.0
    world.is_settled()
    assert world.pids() == pids


def test_edits_that_need_a_new_process_touch_that_engine_only(world: World) -> None:
    ports = {"a": free_port(), "b": free_port()}
    b = engine("b", port=ports["b"])
    world.write(engine("a", port=ports["a"]), b)
    world.apply()
    first = world.until_ready("a#0", "b#0")

    world.write(engine("a", port=ports["a"], model="another"), b)
    (step,) = world.plan()["steps"]
    assert (step["action"], step["cause"]) == ("replace", "model: model-a -> another")
    world.apply()
    second = world.until_ready("a#0", "b#0")
    assert ask(ports["a"], "/v1/models")["data"][0]["id"] == "another"

    wanted = {"args": {"max-model-len": 4096, "enforce-eager": True}, "env": {"COLOUR": "blue"}}
    world.write(engine("a", port=ports["a"], model="another", **wanted), b)
    (step,) = world.plan()["steps"]
    assert set(step["changes"]) == {
        "args.enforce-eager: (none) -> true",
        "args.max-model-len: (none) -> 4096",
        "env.COLOUR: (none) -> blue",
    }
    world.apply()
    third = world.until_ready("a#0", "b#0")
    assert ask(ports["a"], "/argv")[-3:] == ["--enforce-eager", "--max-model-len", "4096"]
    assert ask(ports["a"], "/env")["COLOUR"] == "blue"

    assert len({first["a#0"], second["a#0"], third["a#0"]}) == 3
    assert first["b#0"] == second["b#0"] == third["b#0"]
    world.is_settled()


def test_replicas_and_engines_come_and_go(world: World) -> None:
    port = free_port(3)
    world.write(engine("a", port=port, replicas=2), engine("b"))
    world.apply()
    pids = world.until_ready("a#0", "a#1", "b#0")

    world.write(engine("a", port=port))
    assert world.actions() == {"a#1": "stop", "b#0": "stop"}
    world.apply()
    assert world.until_ready("a#0") == {"a#0": pids["a#0"]}

    world.write(engine("a", port=port, replicas=3))
    assert world.actions() == {"a#1": "start", "a#2": "start"}
    world.apply()
    assert world.until_ready("a#0", "a#1", "a#2")["a#0"] == pids["a#0"]

    world.write(engine("a", port=port, replicas=3, state="stopped"))
    world.apply()
    world.until_none()
    world.is_settled()


def test_a_surge_keeps_the_old_one_until_the_new_one_answers(world: World, automatic_ports: None) -> None:
    world.write(engine("a", port=None))
    world.apply()
    before = world.until_ready("a#0")
    world.write(engine("a", "--answer", "new", port=None))
    (step,) = world.plan()["steps"]
    assert (step["action"], step["strategy"]) == ("replace", "surge")
    out = world.apply().out
    assert out.index("waiting until it answers") < out.index("draining")
    after = world.until_ready("a#0")
    assert after["a#0"].engine != before["a#0"].engine
    world.is_settled()


def test_a_moved_port_moves_the_engine(world: World) -> None:
    first, second = free_port(), free_port()
    world.write(engine("a", port=first))
    world.apply()
    world.write(engine("a", port=second))
    (step,) = world.plan()["steps"]
    assert (step["strategy"], step["cause"]) == ("surge", f"port changed: {first} -> {second}")
    world.apply()
    world.until_ready("a#0")
    assert ask(second, "/v1/models")["data"][0]["id"] == "model-a"
    world.is_settled()
