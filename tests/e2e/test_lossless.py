"""Rollouts by the real commands, under clients that ask through the gateway all the time: none sees them."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.world import World, engine
from tests.gateway.hammer import Hammer
from tests.processes import free_port

OPTIONS = ("--request-delay", "0.01", "--chunk-delay", "0.01")


@contextmanager
def gateway_of(world: World) -> Iterator[int]:
    """A gateway of this world while the block runs; its port."""
    port = free_port()
    world("gateway", "start", "--port", str(port)).ok()
    try:
        yield port
    finally:
        world("gateway", "stop", "--force").ok()


def roll(world: World, replicas: int, **rollout: object) -> None:
    """Replaces every replica of an engine by an edit of its arguments, while clients ask for replies and
    streams, and asserts that they got them."""
    fields = {"port": free_port(2), "model": "fake", "replicas": replicas}
    fields |= {"rollout": {"hold": "60s", **rollout}}
    names = [f"fake#{at}" for at in range(replicas)]
    world.write(engine("fake", *OPTIONS, **fields))
    world.apply()
    before = world.until_ready(*names)
    with gateway_of(world) as port, Hammer(port, threads=4, has_streams=True) as hammer:
        world.write(engine("fake", *OPTIONS, "--answer", "Another one.", **fields))
        world.apply()
        hammer.goes_on()
        after = world.until_ready(*names)
    assert hammer.failures == [[]] * 4
    assert hammer.broken == []
    assert {before[name].engine for name in names}.isdisjoint(after[name].engine for name in names)
    world.is_settled()


def test_two_replicas_are_replaced_one_after_another(world: World) -> None:
    roll(world, 2)


def test_a_single_replica_is_replaced_while_requests_are_held(world: World) -> None:
    roll(world, 1, strategy="recreate")
