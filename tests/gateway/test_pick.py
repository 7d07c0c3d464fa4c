"""Choosing a backend."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.pick import pick
from tests.gateway.world import backend

NAMES = [f"e#{number}" for number in range(5)]


def test_nothing_to_pick() -> None:
    assert pick([], {}, 0) is None
    assert pick([backend("http://x", weight=0)], {}, 0) is None


def test_least_in_flight() -> None:
    one, two = backend("http://x", "e#0"), backend("http://x", "e#1")
    assert pick([one, two], {one.id: 2, two.id: 1}, 0) == two
    assert pick([one, two], {one.id: 1, two.id: 2}, 1) == one


def test_ties_go_round_by_weight() -> None:
    light, heavy = backend("http://x", "e#0"), backend("http://x", "e#1", weight=3)
    picked = Counter(pick([light, heavy], {}, turn) for turn in range(40))
    assert picked == {light: 10, heavy: 30}


def test_weight_divides_the_load() -> None:
    light, heavy = backend("http://x", "e#0"), backend("http://x", "e#1", weight=4)
    assert pick([light, heavy], {light.id: 1, heavy.id: 3}, 0) == heavy
    assert pick([light, heavy], {light.id: 1, heavy.id: 5}, 0) == light


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), min_size=1, max_size=5),
    st.integers(0, 10**6),
)
def test_never_a_busier_one(world: list[tuple[int, int]], turn: int) -> None:
    backends = [backend("http://x", NAMES[at], weight=weight) for at, (weight, _) in enumerate(world)]
    in_flight = {backends[at].id: count for at, (_, count) in enumerate(world)}
    picked = pick(backends, in_flight, turn)
    loads = [in_flight[known.id] / known.weight for known in backends if known.weight]
    assert (picked is None) == (not loads)
    if picked is not None:
        assert in_flight[picked.id] / picked.weight == min(loads)
