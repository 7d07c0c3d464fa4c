"""A whole pass (look, publish, plan, execute, publish) of converge over the in-memory fleet."""

import asyncio
from pathlib import Path

from sage_reconcile.apply.execute import Executor, Options
from sage_reconcile.converge import Host, carry_out, survey
from sage_reconcile.home import Home
from sage_reconcile.model.actions import Outcome, Result
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.route.publish import read
from tests.build import GIB, cpu_spec, desired, engine, launch_of, node, spec
from tests.fakes import FakeProgress, FakeWorld


class PublishedWorld(FakeWorld):
    """Sees the routing table that lies in the home, as a host's eyes do."""

    def __init__(self, home: Home, gpus: int = 1) -> None:
        super().__init__([node("n1", gpus)])
        self.home = home

    async def look(self, desired: DesiredState | None = None) -> ObservedState:
        self.routing = read(self.home.routing_file)
        return await super().look(desired)

    def ready(self, name: str) -> list[str]:
        """The models that stand behind a name that clients send."""
        table = read(self.home.routing_file)
        assert table is not None
        states = {backend.id: backend for backend in table.backends if backend.state == "ready"}
        (route,) = (route for route in table.routes if route.name == name)
        return [states[backend].model for backend in route.backends if backend in states]


def make_pass(world: PublishedWorld, stack: DesiredState) -> tuple[Outcome, ...]:
    async def run() -> tuple[Outcome, ...]:
        found = await survey(stack, world)
        executors: list[Executor] = []
        host = Host(world.home, world, world)
        outcomes = await carry_out(found, host, FakeProgress(), Options(), executors)
        assert len(executors) == 1
        return outcomes

    return asyncio.run(run())


def test_from_nothing_to_served_to_changed_to_gone(tmp_path: Path) -> None:
    world = PublishedWorld(Home(tmp_path))
    first = desired(engine("chat", spec("A", need=60 * GIB), names=["main"]), engine("embed", cpu_spec("E")))
    assert {o.result for o in make_pass(world, first)} == {Result.DONE}
    assert (world.ready("main"), world.ready("embed")) == (["A"], ["E"])
    assert make_pass(world, first) == ()

    second = desired(engine("chat", spec("B", need=60 * GIB), names=["main"]), engine("embed", cpu_spec("E")))
    assert [o.step.id for o in make_pass(world, second)] == ["replace:chat#0"]
    assert world.ready("main") == ["B"]

    assert len(make_pass(world, desired())) == 2
    assert world.processes == {}
    assert read(world.home.routing_file) is not None
    assert world.violations == []


def test_routes_are_published_although_nothing_is_to_be_done(tmp_path: Path) -> None:
    world = PublishedWorld(Home(tmp_path))
    chat = engine("chat", spec("A"))
    world.add(launch_of(chat))
    assert make_pass(world, desired(chat)) == ()
    assert world.ready("chat") == ["A"]


def test_a_name_is_known_while_its_engine_cannot_be_started(tmp_path: Path) -> None:
    world = PublishedWorld(Home(tmp_path))
    world.script.dies_at_start = {"chat"}
    (outcome,) = make_pass(world, desired(engine("chat", spec("A"))))
    assert outcome.result is Result.FAILED
    assert world.ready("chat") == []
