"""Which replica is asked, as they fail and come back: on values, without a connection."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet import Fleet, Plan
from gateway.member import EJECT_AFTER, EJECT_MAX_S, EJECT_S, Member
from gateway.meters import Meters
from sage_reconcile.model.routing import Backend, Route, RoutingTable
from tests.gateway.world import backend

NOW = 1000.0


def backends(count: int, **more: object) -> list[Backend]:
    return [backend(f"http://127.0.0.1:{at + 1}", f"e#{at}", **more) for at in range(count)]  # type: ignore[arg-type]


def table(given: Sequence[Backend]) -> RoutingTable:
    return RoutingTable((Route("m", "llm", tuple(one.id for one in given)),), tuple(given))


def fleet_of(given: Sequence[Backend], workers: int = 1) -> Fleet:
    fleet = Fleet(Meters(), workers)
    fleet.load(table(given))
    return fleet


def plan_of(count: int, **more: object) -> tuple[Plan, list[Member]]:
    fleet = fleet_of(backends(count, **more))
    return fleet.plans["m"], list(fleet.members.values())


def eject(member: Member, now: float = NOW) -> None:
    for _ in range(EJECT_AFTER):
        member.failed("connect", now)


def test_one_that_fails_is_asked_when_there_is_no_other() -> None:
    plan, (bad, good) = plan_of(2, max_concurrent=1)
    eject(bad)
    assert [plan.choose(b"", (), NOW) for _ in range(4)] == [good] * 4
    good.in_flight = 1
    assert plan.choose(b"", (), NOW) is None, "a busy one is waited for"
    assert plan.choose(b"", (good,), NOW) is bad
    assert not plan.has_other((good,), NOW)
    assert plan.has_other((bad,), NOW), "it is waited for"


def test_a_few_failures_are_no_reason() -> None:
    plan, (one, _) = plan_of(2)
    for _ in range(EJECT_AFTER - 1):
        one.failed("reset", NOW)
    one.succeeded()
    one.failed("reset", NOW)
    assert not one.is_ejected(NOW)
    assert {plan.choose(b"", (), NOW) for _ in range(4)} == {*plan.ready}


def test_one_request_at_a_time_tries_it_again_and_each_pause_is_longer() -> None:
    _, (one, _) = plan_of(2)
    eject(one)
    now, pause = NOW, EJECT_S
    for _ in range(8):
        assert one.is_ejected(now + pause * 0.99)
        now += pause
        assert not one.is_ejected(now)
        one.in_flight = 1
        assert one.is_ejected(now), "one is on its way"
        one.in_flight = 0
        one.failed("connect", now)
        pause = min(EJECT_MAX_S, pause * 2)
    one.succeeded()
    assert not one.is_out
    eject(one, now)
    assert not one.is_ejected(now + EJECT_S), "a success forgives all"


def test_failures_of_one_moment_count_as_one_ejection() -> None:
    _, (one, _) = plan_of(2)
    for _ in range(EJECT_AFTER * 5):
        one.failed("reset", NOW)
    assert one.meter.ejections == 1
    assert not one.is_ejected(NOW + EJECT_S)


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_new_table_forgives_nobody_but_who_was_started_again(is_silent: bool) -> None:
    listed = backends(2)
    fleet = fleet_of(listed)
    one = fleet.members[listed[0].id]
    one.silence() if is_silent else eject(one)
    fleet.load(table(listed))
    assert one.is_ejected(NOW)
    fleet.load(table([replace(listed[0], state="pending"), listed[1]]))
    fleet.load(table(listed))
    assert not one.is_ejected(NOW)
    one.silence() if is_silent else eject(one)
    one.in_flight = 1
    fleet.load(table(listed[1:]))
    assert fleet.members[one.id] is one, "it stays while it is busy"
    fleet.load(table(listed))
    assert not one.is_ejected(NOW)


def test_who_leaves_is_forgotten_once_it_is_idle() -> None:
    listed = backends(2)
    fleet = fleet_of(listed)
    fleet.members[listed[0].id].in_flight = 1
    fleet.load(table([]))
    assert fleet.leaving() == {listed[0].id: 1}
    fleet.members[listed[0].id].in_flight = 0
    fleet.load(table([]))
    assert fleet.members == {}


def test_the_workers_share_what_an_engine_takes() -> None:
    [member] = fleet_of(backends(1, max_concurrent=8), workers=4).members.values()
    assert member.limit == 2


@given(st.data())
def test_never_one_that_is_full_avoided_or_not_ready(data: st.DataObject) -> None:
    states = data.draw(st.lists(st.sampled_from(["ready", "pending", "draining"]), max_size=5))
    listed = [
        replace(one, state=state, max_concurrent=2) for one, state in zip(backends(5), states, strict=False)
    ]
    fleet = fleet_of(listed)
    members = list(fleet.members.values())
    for member in members:
        member.in_flight = data.draw(st.integers(0, 3))
        if data.draw(st.booleans()):
            eject(member)
    avoid = data.draw(st.lists(st.sampled_from(members), unique=True)) if members else []
    free = {m for m in members if m.is_ready and m.in_flight < m.limit and m not in avoid}
    well = {m for m in members if m.is_ready and m not in avoid and not m.is_ejected(NOW)}
    chosen = fleet.plans["m"].choose(b"", avoid, NOW)
    if chosen is None:
        assert not free & (well or free)
    else:
        assert chosen in free & (well or free)
