"""Choosing a replica."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pick import FREE_LOAD, MAX_IMBALANCE, POLICIES, pick

POLICY = st.sampled_from(sorted(POLICIES))
KEY = st.binary(max_size=20)
TURN = st.integers(0, 10**9)
DRAW = st.floats(0, 1, exclude_max=True)


@dataclass(eq=False)
class Replica:
    id: str
    in_flight: int = 0
    weight: int = 1


def replicas(*in_flight: int) -> list[Replica]:
    return [Replica(f"e#{number}", load) for number, load in enumerate(in_flight)]


def weighted(*weights: int) -> list[Replica]:
    return [Replica(f"e#{number}", 0, weight) for number, weight in enumerate(weights)]


POOLS = st.lists(
    st.builds(Replica, st.just(""), st.integers(0, 50), st.integers(1, 5)), min_size=1, max_size=6
)


def named(pool: list[Replica]) -> list[Replica]:
    for number, replica in enumerate(pool):
        replica.id = f"e#{number}"
    return pool


def shares(pool: list[Replica], turns: int, policy: str, key: Callable[[int], bytes] = bytes) -> list[float]:
    """What each got of so many turns, in parts of all, while nothing is in flight."""
    draws = random.Random(7)
    got = Counter(pick(policy, pool, key(turn), turn, draws.random()).id for turn in range(turns))
    return [got[replica.id] / turns for replica in pool]


@given(POLICY, POOLS, KEY, TURN, DRAW)
def test_always_one_of_them(policy: str, pool: list[Replica], key: bytes, turn: int, draw: float) -> None:
    assert pick(policy, named(pool), key, turn, draw) in pool


@given(st.lists(st.integers(0, 50), min_size=2, max_size=2), TURN, DRAW)
def test_of_two_never_the_busier_one(in_flight: list[int], turn: int, draw: float) -> None:
    assert pick("least_inflight", replicas(*in_flight), b"", turn, draw).in_flight == min(in_flight)


def test_weight_divides_the_load() -> None:
    light, heavy = pool = weighted(1, 4)
    light.in_flight, heavy.in_flight = 1, 3
    assert pick("least_inflight", pool, b"", 0, 0.0) is heavy
    heavy.in_flight = 5
    assert pick("least_inflight", pool, b"", 0, 0.0) is light


@given(st.lists(st.integers(0, 50), min_size=3, max_size=8, unique=True), TURN, DRAW)
def test_of_many_never_the_busiest_one(in_flight: list[int], turn: int, draw: float) -> None:
    assert pick("least_inflight", replicas(*in_flight), b"", turn, draw).in_flight < max(in_flight)


def test_of_many_each_pair_is_drawn_as_often() -> None:
    pool = replicas(0, 1, 2, 3)
    got = shares(pool, 6000, "least_inflight")
    assert got == pytest.approx([1 / 2, 1 / 3, 1 / 6, 0], abs=0.03)


def test_requests_that_stay_are_spread_by_weight() -> None:
    pool, draws = weighted(1, 2, 5), random.Random(7)
    for turn in range(800):
        pick("least_inflight", pool, b"", turn, draws.random()).in_flight += 1
    assert [replica.in_flight / 800 for replica in pool] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("weights", [(1, 3), (1, 1, 2), (5, 1, 3, 1)])
def test_weights_are_shares(policy: str, weights: tuple[int, ...]) -> None:
    got = shares(weighted(*weights), 6000, policy, lambda turn: b"%d" % turn)
    assert got == pytest.approx([weight / sum(weights) for weight in weights], abs=0.025)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), TURN)
def test_each_run_of_turns_is_exact(weights: list[int], first: int) -> None:
    pool = weighted(*weights)
    run = [pick("round_robin", pool, b"", first + turn, 0.0).id for turn in range(sum(weights))]
    assert Counter(run) == {replica.id: replica.weight for replica in pool}


def test_turns_of_large_weights_alternate() -> None:
    pool = weighted(100, 100)
    run = [pick("round_robin", pool, b"", turn, 0.0).id for turn in range(200)]
    assert all(len(set(run[at : at + 3])) == 2 for at in range(198))


AFFINITY = st.sampled_from(["prefix_affinity", "session_affinity"])


@given(AFFINITY, st.integers(2, 8), KEY.filter(bool), st.integers(0, 7), TURN, DRAW)
def test_a_replica_that_goes_moves_only_its_own_keys(
    policy: str, size: int, key: bytes, goes: int, turn: int, draw: float
) -> None:
    pool = replicas(*[0] * size)
    home = pick(policy, pool, key, 0, 0.0)
    left = [replica for replica in pool if replica is not pool[goes % size]]
    now = pick(policy, left, key, turn, draw)
    assert (now is home) == (home is not pool[goes % size])


@given(AFFINITY, POOLS, KEY.filter(bool), TURN)
def test_affinity_does_not_overload(policy: str, pool: list[Replica], key: bytes, turn: int) -> None:
    picked = pick(policy, named(pool), key, turn, 0.0)
    even = sum(replica.in_flight for replica in pool) / sum(replica.weight for replica in pool)
    bound = max(FREE_LOAD, MAX_IMBALANCE * even * picked.weight + 1)
    assert picked.in_flight <= bound or len(pool) == 1


def test_a_key_comes_home_when_its_replica_has_time_again() -> None:
    pool = replicas(0, 0, 0)
    home = pick("session_affinity", pool, b"anna", 0, 0.0)
    home.in_flight = FREE_LOAD
    assert pick("session_affinity", pool, b"anna", 1, 0.0) is home
    home.in_flight = FREE_LOAD + 1
    second = pick("session_affinity", pool, b"anna", 2, 0.0)
    assert second is not home
    assert pick("session_affinity", pool, b"anna", 3, 0.5) is second
    home.in_flight = 0
    assert pick("session_affinity", pool, b"anna", 4, 0.0) is home


def test_what_overflows_is_spread_over_the_others() -> None:
    pool = replicas(0, 0, 0, 0)
    homes = {key: pick("session_affinity", pool, key, 0, 0.0) for key in (b"%d" % n for n in range(4000))}
    pool[0].in_flight = 100
    seconds = Counter(
        pick("session_affinity", pool, key, 0, 0.0).id for key, home in homes.items() if home is pool[0]
    )
    assert [seconds[replica.id] / seconds.total() for replica in pool[1:]] == pytest.approx(
        [1 / 3] * 3, abs=0.06
    )


def test_without_a_key_the_least_busy_is_taken() -> None:
    assert {pick("session_affinity", replicas(3, 1), b"", turn, 0.0).id for turn in range(9)} == {"e#1"}
