"""How long a step will take and who will notice, from facts; and "unknown" where there is none."""

from dataclasses import replace

import pytest

from sage_reconcile.model.actions import Expected, Step
from sage_reconcile.model.desired import DesiredEngine, EngineState, LaunchSpec, RouteSpec, Strategy
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.observed import Health, ObservedState
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.render.plan_data import plan_data, plan_markdown
from sage_reconcile.render.plan_text import expected_words, plan_lines
from tests.build import desired, engine, launch_of, observed, spec
from tests.plan.test_facts import fact

OLD = replace(spec("m", need=0.5, runtime="vllm", args=(("seed", 1),)), can_sleep=True)
NEW = replace(OLD, args=(("seed", 2),))
FACT = fact(OLD, start_seconds=38.0, stop_seconds=2.0, sleep_seconds=0.5, wake_seconds=0.25)
UNKNOWN = "seconds without it: unknown, never measured here"


def edited(
    strategy: Strategy, *facts: Fact, hold: float = 60.0, new: LaunchSpec = NEW, replicas: int = 1
) -> Step:
    one = engine("chat", new, strategy=strategy, replicas=replicas, route=RouteSpec(("chat",), hold=hold))
    old = replace(one, launch=OLD, fingerprint="")
    state = observed(
        *(launch_of(engine("chat", old.launch), n, port=8901 + n) for n in range(replicas)), facts=facts
    )
    return reconcile(desired(one), state).steps[0]


@pytest.mark.parametrize(
    ("strategy", "expected", "words"),
    [
        (
            Strategy.RECREATE,
            Expected(40.0, 40.0, 0.0, 60.0),
            "about 40 s without it, 0 s of refused requests: they are held",
        ),
        (
            Strategy.SLEEP_SWAP,
            Expected(38.5, 40.5, 0.0, 60.0),
            "about 38 s without it, 0 s of refused requests: they are held",
        ),
        (Strategy.SURGE, Expected(0.0, 40.0, 0.0), "no outage, about 40 s of work"),
    ],
)
def test_each_strategy_says_what_it_costs(strategy: Strategy, expected: Expected, words: str) -> None:
    """An edited launch was never started: what it was before the edit tells."""
    room = replace(NEW, gpu_memory=0.4) if strategy is Strategy.SURGE else NEW
    step = edited(strategy, FACT, new=room)
    assert (step.strategy, step.expected) == (strategy, expected)
    assert expected_words(expected) == words


def test_requests_that_wait_too_long_are_told_with_what_to_change() -> None:
    step = edited(Strategy.RECREATE, FACT, hold=30.0)
    assert step.expected == Expected(40.0, 40.0, 10.0, 30.0)
    words = expected_words(step.expected)
    assert "requests are held for 30 s, those of the first 10 s are refused" in words
    assert words.endswith("rollout.hold: 48s would hold them all")
    assert edited(Strategy.RECREATE, FACT, hold=48.0).expected == Expected(40.0, 40.0, 0.0, 48.0)


def test_what_was_never_measured_is_unknown() -> None:
    step = edited(Strategy.RECREATE)
    assert step.expected == Expected(None, None, None, 60.0)
    assert expected_words(step.expected) == UNKNOWN
    surge = edited(Strategy.SURGE, new=replace(NEW, gpu_memory=0.4))
    assert surge.expected is not None
    assert expected_words(surge.expected) == "no outage, seconds of work unknown: never measured here"


def test_the_nearest_measurement_counts() -> None:
    exact = fact(NEW, start_seconds=20.0)
    elsewhere = replace(fact(spec("m", runtime="vllm"), start_seconds=90.0), engine="demo/other", at=9e9)
    assert edited(Strategy.RECREATE, FACT, exact, elsewhere).expected == Expected(22.0, 22.0, 0.0, 60.0)
    assert edited(Strategy.RECREATE, FACT, elsewhere).expected == Expected(40.0, 40.0, 0.0, 60.0)
    assert edited(Strategy.RECREATE, elsewhere).expected == Expected(90.0, 90.0, 30.0, 60.0)
    for foreign in (replace(FACT, model="n"), replace(FACT, runtime="command"), replace(FACT, gpu="A100")):
        assert edited(Strategy.RECREATE, foreign).expected == Expected(None, None, None, 60.0)


def test_the_other_replicas_serve_meanwhile() -> None:
    step = edited(
        Strategy.RECREATE, replace(FACT, fingerprint="x"), replicas=2, new=replace(NEW, gpu_memory=0.45)
    )
    assert step.expected == Expected(0.0, 40.0, 0.0)


def test_a_start_and_a_wake_say_how_long_they_take_if_it_is_known() -> None:
    one = engine("chat", OLD)
    (start,) = reconcile(desired(one), observed(facts=(FACT,))).steps
    assert start.expected == Expected(None, 38.0)
    assert expected_words(Expected(None, 38.0)) == "about 38 s of work"
    assert reconcile(desired(one), observed()).steps[0].expected is None
    asleep = launch_of(one, health=Health.ASLEEP)
    (wake,) = reconcile(desired(one), observed(asleep, facts=(FACT,))).steps
    assert wake.expected == Expected(None, 0.25)
    stopped: DesiredEngine = replace(one, state=EngineState.STOPPED)
    assert reconcile(desired(stopped), observed(asleep, facts=(FACT,))).steps[0].expected is None


def test_text_json_and_markdown_say_it() -> None:
    one = engine("chat", NEW, strategy=Strategy.RECREATE)
    state: ObservedState = observed(launch_of(engine("chat", OLD)), facts=(FACT,))
    plan = reconcile(desired(one), state)
    said = "about 40 s without it: requests are held for 30 s, those of the first 10 s are refused"
    assert any(said in line for _, line in plan_lines(plan))
    assert said in plan_markdown(plan)
    assert "rollout.strategy is recreate; about 40 s" in plan_markdown(plan)
    assert plan_data(plan)["steps"][0]["expected"] == {
        "outage_seconds": 40.0,
        "work_seconds": 40.0,
        "refused_seconds": 10.0,
    }
