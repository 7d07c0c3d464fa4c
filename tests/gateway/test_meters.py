"""Counting, adding up, and what is kept of names and replicas that are gone."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.meters import KEEP_COUNT, KEEP_S, SLACK_S, Histogram, Meters, Numbers, RouteMeter
from sage_reconcile.model.routing import Backend
from tests.gateway.world import backend, table

ONE = backend("http://x", "e#0")
TWO = backend("http://y", "e#1")

# What the request path does to a worker's numbers.
Event = Callable[[Meters], None]


def reply(name: str, status: int, seconds: float) -> Event:
    def count(meters: Meters) -> None:
        meter = meters.route(name)
        meter.replies[status] = meter.replies.get(status, 0) + 1
        meter.duration.observe(seconds)
        meter.gap.observe(seconds / 8)
        meter.bytes_in += status

    return count


def refusal(name: str, code: str) -> Event:
    def count(meters: Meters) -> None:
        refused = meters.route(name).refused
        refused[code] = refused.get(code, 0) + 1

    return count


def failure(of: Backend, kind: str) -> Event:
    def count(meters: Meters) -> None:
        meter = meters.backend(of)
        meter.failures[kind] = meter.failures.get(kind, 0) + 1
        meter.ejections += 1
        meter.in_flight += 1

    return count


names = st.sampled_from(["a", "b", "nobody knows", ""])
# Multiples of 1/1024: their sums are exact in any order.
seconds = st.integers(0, 1024 * 700).map(lambda count: count / 1024)
events = st.one_of(
    st.builds(reply, names, st.sampled_from([200, 404, 503]), seconds),
    st.builds(refusal, names, st.sampled_from(["queue_full", "deadline"])),
    st.builds(failure, st.sampled_from([ONE, TWO]), st.sampled_from(["reset", "connect"])),
)


def following() -> Meters:
    meters = Meters()
    meters.follow(table({"a": [ONE], "b": [ONE, TWO]}), now=1.0)
    return meters


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), events), max_size=40))
def test_the_sum_of_workers_is_what_one_would_have_counted(happened: list[tuple[int, Event]]) -> None:
    workers, one = [following() for _ in range(4)], following()
    for at, event in happened:
        event(workers[at])
        event(one)
    total = Numbers()
    for worker in workers:
        total.add(worker.numbers, gauges=True)
    assert total == one.numbers


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1000), min_size=1), st.floats(0, 1))
def test_a_quantile_is_in_the_bucket_of_the_real_one(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    found = histogram.quantile(share)
    assert found is not None
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    edges = (0.0, *histogram.bounds)
    upper = next((at for at, bound in enumerate(edges) if exact <= bound), len(edges) - 1)
    assert edges[max(0, upper - 1)] <= found <= edges[upper]


def test_a_value_on_a_bound_is_within_it() -> None:
    histogram = Histogram()
    histogram.observe(0.001)
    histogram.observe(601.0)
    assert (histogram.counts[0], histogram.counts[-1]) == (1, 1)
    assert Histogram().quantile(0.5) is None


def test_clients_cannot_make_series() -> None:
    meters = following()
    assert meters.route("a") is meters.route("a")
    for number in range(100):
        meters.route(f"made-up-{number}").retries += 1
    assert set(meters.numbers.routes) == {"a", ""}
    assert meters.route("").retries == 100


def test_a_rollout_goes_on_counting() -> None:
    meters = following()
    meters.backend(ONE).ejections += 1
    for launch in range(50):
        newer = replace(ONE, id=f"s/e#0@f:{launch + 2}", node=f"n{launch}")
        meters.follow(table({"a": [newer]}), now=2.0 + launch)
        meters.backend(newer).ejections += 1
    assert [(key, known.ejections, known.node) for key, known in meters.numbers.backends.items()] == [
        ("s/e#0", 51, "n49")
    ]


def test_what_left_is_kept_for_a_while() -> None:
    meters = following()
    gone, busy, kept = meters.route("a"), meters.route("b"), meters.backend(ONE)
    busy.in_flight = 1
    meters.follow(table({}), now=10.0)
    long_after = 10.0 + KEEP_S + SLACK_S
    meters.mark(meters.numbers, long_after)
    assert meters.route("a") is gone
    meters.follow(table({"c": [ONE]}), now=long_after + 1)
    assert set(meters.numbers.routes) == {"b"}
    assert meters.backend(ONE) is kept
    meters.follow(table({"b": [ONE]}), now=long_after + 2)
    busy.in_flight = 0
    meters.mark(meters.numbers, 10 * long_after)
    assert meters.route("b") is busy


def test_only_so_many_that_left_are_kept() -> None:
    numbers = Numbers({f"m{at}": RouteMeter(left=float(at + 1)) for at in range(KEEP_COUNT + 5)})
    numbers.forget(before=0.0)
    assert len(numbers.routes) == KEEP_COUNT
    assert "m4" not in numbers.routes
    assert "m5" in numbers.routes


def test_a_name_that_one_worker_has_not_left() -> None:
    total = Numbers()
    for left in (5.0, 9.0):
        total.add(Numbers({"a": RouteMeter(left=left)}), gauges=False)
    assert total.routes["a"].left == 9.0
    total.add(Numbers({"a": RouteMeter()}), gauges=False)
    assert total.routes["a"].left == 0.0


def test_other_bounds_are_not_added_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        Histogram().add(Histogram(counts=[1]))
