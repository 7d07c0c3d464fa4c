"""The stack as it runs, read back: what a command without a file publishes must be what was published."""

from dataclasses import replace

from sage_reconcile.adopted import as_desired
from sage_reconcile.model.desired import RouteSpec
from sage_reconcile.route.table import routing_table
from tests.build import STACK, desired, engine, launch_of, observed

ROUTE = RouteSpec(
    ("chat", "x"),
    weight=3,
    max_concurrent=9,
    policy="round_robin",
    hold=5.0,
    metadata=(("a", "b"),),
    queue_policy="priority",
    queue_size=0,
    queue_timeout=6.0,
    first_byte_timeout=4.0,
    idle_timeout=3.0,
)


def test_a_route_is_read_back_as_it_was_published() -> None:
    chat = engine(route=ROUTE)
    state = observed(launch_of(chat))
    published = routing_table(desired(chat), state)
    adopted = as_desired(STACK, replace(state, routing=published))
    assert adopted.engines[0].route == ROUTE
    assert routing_table(adopted, state) == published
