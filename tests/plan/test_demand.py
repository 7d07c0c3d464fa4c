"""Engines on demand: who is loaded, who is put aside, who makes room for whom, and in which words."""

import asyncio
import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sage_reconcile.model.actions import Drain, Plan, Step, Verdict
from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState, OnDemandSpec
from sage_reconcile.model.observed import Demand, Health, ObservedLaunch, ObservedState
from sage_reconcile.plan.demand import due_in
from sage_reconcile.plan.policy import Policy
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.render.plan_data import plan_data
from sage_reconcile.route.table import routing_table
from tests.build import NOW, STACK, desired, engine, launch_of, node, observed, spec
from tests.fakes import FakeWorld, apply

DEFAULT = OnDemandSpec()


def sleeper(
    name: str, share: float = 0.6, can_sleep: bool = True, given: OnDemandSpec = DEFAULT, **more: object
) -> DesiredEngine:
    launch = spec(f"model-{name}", need=share, runtime="vllm", can_sleep=can_sleep)
    return engine(name, launch, on_demand=given, **more)  # type: ignore[arg-type]


def up(one: DesiredEngine, health: Health = Health.READY, ago: float = 120.0) -> ObservedLaunch:
    """Its launch, loaded so many seconds ago."""
    launch = launch_of(one, health=health, id=f"l-{one.name}", port=8900 + ord(one.name[0]))
    return replace(
        launch, since=NOW - ago, gpu_mib=((launch.mark.placement.gpus[0], 1024),) * (health is Health.ASLEEP)
    )


def asked(name: str, ago: float = 0.25, **more: object) -> Demand:
    return Demand(STACK, name, waiting=1, since=NOW - ago, last=NOW - ago, **more)  # type: ignore[arg-type]


def used(name: str, ago: float, in_flight: int = 0) -> Demand:
    return Demand(STACK, name, in_flight=in_flight, last=NOW - ago)


def plan(stack: DesiredState, *launches: ObservedLaunch, demand: tuple[Demand, ...] | None = ()) -> Plan:
    return reconcile(stack, observed(*launches, demand=demand))


def words(plan: Plan) -> list[str]:
    return [f"{step.verdict} {step.replica.engine}: {step.cause}" for step in plan.steps]


A, B, C = sleeper("a"), sleeper("b"), sleeper("c", 0.3)


def test_nobody_asks() -> None:
    """What runs goes on, what sleeps sleeps on, what is not there is not started."""
    for state in ((), (up(A),), (up(A, Health.ASLEEP),), (up(A), up(B, Health.ASLEEP))):
        made = plan(desired(A, B), *state, demand=None)
        assert (made.steps, made.blocked) == ((), ())


def test_who_is_asked_for_is_started_or_woken() -> None:
    assert words(plan(desired(A, B), demand=(asked("a"),))) == ["start a: asked for 0.2 s ago; not running"]
    asleep = plan(desired(A, B), up(A, Health.ASLEEP), demand=(asked("a", 90),))
    assert words(asleep) == ["wake a: asked for 90 s ago"]


def test_the_sleeper_gives_its_memory_to_the_one_that_is_asked_for() -> None:
    made = plan(desired(A, B), up(A), up(B, Health.ASLEEP), demand=(asked("b"),))
    assert words(made) == ["sleep a: makes room for b", "wake b: asked for 0.2 s ago"]
    assert made.steps[1].after == ("sleep:a#0",)
    (line,) = made.memory
    assert line.peak_mib <= line.total_mib


def test_who_cannot_sleep_is_stopped() -> None:
    one = sleeper("a", can_sleep=False)
    made = plan(desired(one, B), up(one), demand=(asked("b"),))
    assert words(made) == ["stop a: makes room for b", "start b: asked for 0.2 s ago; not running"]


def test_the_least_recently_used_makes_room_and_no_more_than_needed() -> None:
    small = [sleeper(name, 0.3) for name in "xyz"]
    state = [up(one) for one in small]
    demand = (used("x", 50), used("y", 90), used("z", 70), asked("c"))
    assert words(plan(desired(C, *small), *state, demand=demand))[0] == "sleep y: makes room for c"
    demand = (used("x", 50), used("y", 90), used("z", 70), asked("b"))
    both = words(plan(desired(B, *small), *state, demand=demand))
    assert both[:2] == ["sleep y: makes room for b", "sleep z: makes room for b"]
    assert len(both) == 3


@pytest.mark.parametrize(
    ("given", "ago", "why"),
    [
        (OnDemandSpec(pin=True), 3600.0, ""),
        (OnDemandSpec(priority=1), 120.0, "a has a higher priority"),
        (OnDemandSpec(min_residency=30.0), 10.0, "a was loaded 10 s ago and stays for 30 s"),
    ],
)
def test_who_does_not_make_room(given: OnDemandSpec, ago: float, why: str) -> None:
    one = sleeper("a", given=given)
    made = plan(desired(one, B), up(one, ago=ago), demand=(asked("b"),))
    assert made.steps == ()
    if why:
        (kept,) = [kept for kept in made.kept if kept.replica.engine == "b"]
        assert kept.reason == f"asked for 0.2 s ago; waits for room: {why}"
    else:
        assert [blocked.replica.engine for blocked in made.blocked] == ["b"]


def test_requests_in_flight_are_drained_before_and_only_where_nobody_idle_will_do() -> None:
    made = plan(desired(A, B), up(A), demand=(used("a", 0, in_flight=3), asked("b")))
    assert words(made)[0] == "sleep a: makes room for b"
    assert any(isinstance(action, Drain) and action.is_required for action in made.steps[0].actions)
    pair = [sleeper("x", 0.5), sleeper("y", 0.5)]
    demand = (used("x", 0, in_flight=1), used("y", 1), asked("c"))
    assert words(plan(desired(C, *pair), *map(up, pair), demand=demand))[0] == "sleep y: makes room for c"


def test_two_are_asked_for_and_one_has_a_place() -> None:
    """Who has waited longer comes first; the other one is told what it waits for, which is no fault."""
    made = plan(desired(A, B), demand=(asked("a", 1), asked("b", 3)))
    assert words(made) == ["start b: asked for 3.0 s ago; not running"]
    assert made.blocked == ()
    (kept,) = [kept for kept in made.kept if kept.replica.engine == "a"]
    assert kept.reason == "asked for 1.0 s ago; waits for room: b was asked for 3.0 s ago"


def test_what_sleeps_is_ended_where_its_rest_is_in_the_way() -> None:
    big = sleeper("a", 0.999)
    made = plan(desired(big, B), up(B, Health.ASLEEP), demand=(used("b", 99), asked("a")))
    assert words(made) == ["stop b: makes room for a", "start a: asked for 0.2 s ago; not running"]


def test_idle_ones_are_put_aside() -> None:
    state, stack = (up(A, ago=3600),), desired(A)
    assert words(plan(stack, *state, demand=(used("a", 600),))) == ["sleep a: idle for 10 min"]
    assert plan(stack, *state, demand=(used("a", 599),)).steps == ()
    assert plan(stack, *state, demand=(used("a", 900, in_flight=1),)).steps == ()
    assert plan(stack, *state, demand=None).steps == (), "no gateway tells: nobody is known to be idle"
    assert words(plan(stack, *state, demand=())) == ["sleep a: idle for 60 min"]
    pinned = sleeper("a", given=OnDemandSpec(pin=True))
    assert plan(desired(pinned), up(pinned, ago=3600), demand=()).steps == ()


def test_what_others_depend_on_is_loaded_with_them_and_stays() -> None:
    above = sleeper("b", 0.2, after=("a",))
    both = plan(desired(A, above), demand=(asked("b"),))
    assert words(both) == [
        "start a: needed by b; not running",
        "start b: asked for 0.2 s ago; not running",
    ]
    assert (
        plan(
            desired(A, above), up(A, ago=3600), up(above, ago=3600), demand=(used("b", 1), used("a", 9999))
        ).steps
        == ()
    )


def test_preload_takes_free_room_and_nobody_elses() -> None:
    one = sleeper("b", given=OnDemandSpec(preload=True))
    assert words(plan(desired(A, one))) == ["start b: preload; not running"]
    made = plan(desired(A, one), up(A))
    assert (made.steps, made.blocked) == ((), ())
    assert reconcile(desired(one), observed(), Policy(preload=False)).steps == ()


def test_a_changed_sleeper_starts_anew_when_it_is_asked_for() -> None:
    old = up(sleeper("a", 0.5), Health.ASLEEP)
    (step,) = plan(desired(A), old, demand=()).steps
    assert step.verdict is Verdict.STOP
    assert words(plan(desired(A), old, demand=(asked("a"),)))[0].startswith("replace a: ")


def test_who_crashed_while_nobody_asks_does_not_come_back_by_itself() -> None:
    """One that slept would come back awake, into memory that others have now."""
    crashed = replace(up(A, Health.STARTING), restarts=1)
    assert words(plan(desired(A), crashed)) == ["stop a: it ended, and nobody asks for it"]
    again = replace(up(A), restarts=1, ready_at=NOW - 5)
    assert words(plan(desired(A), again, demand=(used("a", 60.0),))) == [
        "stop a: it ended, and nobody asks for it"
    ]
    assert words(plan(desired(A), again, demand=(used("a", 1.0),))) == []
    pinned = replace(A, on_demand=OnDemandSpec(pin=True))
    assert words(plan(desired(pinned), again, demand=(used("a", 60.0),))) == []
    assert words(plan(desired(A), crashed, demand=(asked("a"),)))[0].startswith("await a: is starting")
    assert words(plan(desired(A), crashed, demand=None))[0].startswith("await a: is starting")
    beside = plan(desired(A, B), crashed, up(B), demand=(asked("a"),))
    assert words(beside) == ["stop a: it came back into memory that others have by now"]


def test_a_plan_names_who_is_not_there() -> None:
    assert plan(desired(A, B), up(A)).notes == ("on demand, loaded when a request asks for it: b",)


def test_a_stopped_one_is_not_to_be_had_on_demand() -> None:
    one = sleeper("a", state=EngineState.STOPPED)
    assert plan(desired(one), demand=(asked("a"),)).steps == ()


def test_when_time_alone_makes_another_plan() -> None:
    assert due_in(desired(A), observed(up(A, ago=3600), demand=(used("a", 590),))) == pytest.approx(10)
    assert due_in(desired(A), observed(up(A), demand=(used("a", 9, in_flight=1),))) == pytest.approx(600)
    assert due_in(desired(A), observed(up(A), demand=None)) is None
    waits = observed(up(A, ago=10), demand=(used("a", 0, in_flight=1), asked("b")))
    assert due_in(desired(A, B), waits) == pytest.approx(20)


def test_the_route_of_one_that_is_not_there_names_it() -> None:
    table = routing_table(desired(A), observed())
    assert {route.name: route.on_demand for route in table.routes} == {"a": "a"}
    assert routing_table(desired(engine("a")), observed()).routes[0].on_demand == ""


def test_who_is_still_busy_when_its_time_is_over_goes_on() -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(up(A))
    world.script.never_drained.add("a")
    world.demand = {"a": used("a", 0, in_flight=2), "b": asked("b")}
    _, outcomes = asyncio.run(apply(world, desired(A, B)))
    assert [(o.result, o.rolled_back) for o in outcomes] == [("failed", True), ("skipped", False)]
    assert "it still has requests in flight after 30 s; it goes on serving" in outcomes[0].reason
    assert (world.engines(), world.violations) == ({"a#0": "model-a"}, [])
    assert world.routing is not None
    assert [backend.state for backend in world.routing.backends] == ["ready"]


bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def groups(draw: st.DrawFn) -> DesiredState:
    """Two to four engines, each of which has room on one GPU of its own."""
    made = []
    for name in "abcd"[: draw(st.integers(2, 4))]:
        given = OnDemandSpec(
            idle_ttl=draw(st.sampled_from([20.0, 600.0])),
            min_residency=draw(st.sampled_from([0.0, 10.0])),
            preload=draw(st.booleans()),
            priority=draw(st.sampled_from([0, 0, 1])),
            pin=draw(st.sampled_from([False, False, False, True])),
        )
        share = draw(st.sampled_from([0.3, 0.5, 0.9]))
        made.append(sleeper(name, share, draw(st.booleans()), given))
    return desired(*made)


events = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["ask", "use", "rest", "wait"])),
    min_size=1,
    max_size=8,
)


@dataclass
class Life:
    """A world in which clients ask, and what every pass may not do."""

    world: FakeWorld
    stack: DesiredState

    def turn(self, name: str, event: str) -> None:
        demand, now = self.world.demand, self.world.at
        assert demand is not None
        if event == "wait":
            self.world.at += 30.0
        elif event == "ask" and f"{name}#0" not in self.world.engines():
            demand[name] = Demand(STACK, name, waiting=1, since=now, last=now)
        elif event == "use" and f"{name}#0" in self.world.engines():
            demand[name] = Demand(STACK, name, in_flight=2, last=now)
        elif event == "rest" and name in demand:
            demand[name] = replace(demand[name], in_flight=0, waiting=0)

    def step(self) -> Plan:
        before = self.world.seen()
        self.world.at -= 1.0
        made, _ = asyncio.run(apply(self.world, self.stack))
        assert json.dumps(plan_data(reconcile(self.stack, before))) == json.dumps(plan_data(made))
        for step in made.steps:
            if step.cause.startswith("makes room"):
                self.made_room(step, before)
        for name, told in (self.world.demand or {}).items():
            if told.waiting and f"{name}#0" in self.world.engines():
                self.world.demand[name] = replace(told, waiting=0, since=0.0, last=self.world.at)  # type: ignore[index]
        return made

    def made_room(self, step: Step, before: ObservedState) -> None:
        own, other = self.stack.engine(step.replica.engine), self.stack.engine(step.cause.split()[-1])
        assert own is not None
        assert other is not None
        assert own.on_demand is not None
        assert other.on_demand is not None
        assert not own.on_demand.pin
        assert own.on_demand.priority <= other.on_demand.priority
        (launch,) = [one for one in before.launches if one.replica == step.replica]
        if launch.health is Health.READY:
            loaded = max(launch.since, launch.woken_at)
            assert before.at - loaded >= own.on_demand.min_residency
        if step.verdict is not Verdict.SLEEP or launch.health is Health.READY:
            assert all(action.is_required for action in step.actions if isinstance(action, Drain))


@bounded
@given(groups(), events, st.integers(1, 2))
def test_whoever_asks_in_whatever_order(stack: DesiredState, turns: list[tuple[str, str]], gpus: int) -> None:
    """Never over memory, never a pinned or a just loaded one put aside, never a request cut off; and whoever
    asks gets its engine, or the plan says why not."""
    world = FakeWorld([node("n1", gpus)])
    world.demand = {}
    life = Life(world, stack)
    for name, event in turns:
        if stack.engine(name):
            life.turn(name, event)
            made = life.step()
            assert world.violations == []
            for waiting in (told.engine for told in world.demand.values() if told.waiting):
                told_why = {b.replica.engine for b in made.blocked} | {
                    k.replica.engine for k in made.kept if k.reason
                }
                assert waiting in told_why
