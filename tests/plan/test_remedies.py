"""What is offered where memory is short: edits that lead to a plan without the block, the cheapest first."""

from dataclasses import replace

from hypothesis import given

from sage_reconcile.engines.modelfiles import model_files
from sage_reconcile.model.actions import Blocked, Remedy
from sage_reconcile.model.desired import DesiredEngine, DesiredState, LaunchSpec, Strategy
from sage_reconcile.model.observed import Health, ObservedState
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.plan.remedies import applied
from sage_reconcile.render.plan_data import plan_data, plan_markdown
from sage_reconcile.render.plan_text import plan_lines
from tests.build import GIB, desired, engine, gpu, launch_of, node, observed, spec
from tests.engines.configs import KNOWN
from tests.fakes import FakeWorld
from tests.plan.test_properties import bounded, situations

LLAMA = model_files("llama", KNOWN["llama-3-8b"].config)


def vllm(need: str | int | float, *, can_sleep: bool = False, model: str = "m") -> LaunchSpec:
    return spec(model, need=need, runtime="vllm", can_sleep=can_sleep)


def blocked_one(stack: DesiredState, state: ObservedState) -> Blocked:
    (blocked,) = reconcile(stack, state).blocked
    return blocked


def is_cured(remedy: Remedy, stack: DesiredState, state: ObservedState) -> bool:
    return reconcile(applied(remedy, stack), state).blocked == ()


def edits(blocked: Blocked) -> list[str]:
    return [remedy.edit for remedy in blocked.remedies]


def test_the_cheapest_come_first_and_each_is_enough() -> None:
    big, small = (
        engine("big", vllm(60 * GIB, can_sleep=True)),
        engine("small", vllm(10 * GIB, can_sleep=True)),
    )
    new = engine("new", vllm(15 * GIB))
    stack, state = desired(big, small, new), observed(launch_of(big), launch_of(small, id="l2", port=8902))
    blocked = blocked_one(stack, state)
    assert edits(blocked) == [
        "engines.new.gpu_memory=6.3GiB",
        "engines.small.state=asleep",
        "engines.big.state=asleep",
    ]
    assert all(is_cured(remedy, stack, state) for remedy in blocked.remedies)


def test_what_cannot_sleep_gives_less_or_is_stopped() -> None:
    old, new = engine("old", vllm(60 * GIB)), engine("new", spec(need=30 * GIB))
    stack, state = desired(old, new), observed(launch_of(old))
    blocked = blocked_one(stack, state)
    assert edits(blocked) == ["engines.old.gpu_memory=48.7GiB", "engines.old.state=stopped"]
    assert blocked.remedies[1].said == "frees 62,670 MiB"
    assert all(is_cured(remedy, stack, state) for remedy in blocked.remedies)


def test_instead_of_a_surge_that_the_file_pins() -> None:
    old = engine("chat", spec(need=60 * GIB), strategy=Strategy.SURGE)
    new = engine("chat", spec("other", need=60 * GIB), strategy=Strategy.SURGE)
    blocked = blocked_one(desired(new), observed(launch_of(old)))
    assert edits(blocked) == ["engines.chat.rollout.strategy=recreate"]
    assert is_cured(blocked.remedies[0], desired(new), observed(launch_of(old)))


def test_nothing_is_offered_that_would_not_start() -> None:
    """8 GiB would be free, and the model's weights take 15."""
    state = observed(nodes=[node(gpus=[gpu(0, used=72 * GIB)])])
    new = engine("new", vllm(20 * GIB, model="llama"))
    assert edits(blocked_one(desired(new), state)) == ["engines.new.gpu_memory=6.7GiB"]
    assert edits(blocked_one(desired(new), replace(state, models=(LLAMA,)))) == []


def test_the_flag_that_the_file_uses_is_the_one_to_lower() -> None:
    one = replace(vllm("auto"), args=(("gpu-memory-utilization", 0.9),))
    new, state = engine("new", one), observed(nodes=[node(gpus=[gpu(0, used=40 * GIB)])])
    blocked = blocked_one(desired(new), state)
    assert edits(blocked) == ["engines.new.args.gpu-memory-utilization=0.48"]
    assert is_cured(blocked.remedies[0], desired(new), state)


def test_not_what_it_depends_on() -> None:
    old, new = engine("old", spec(need=60 * GIB)), engine("new", spec(need=30 * GIB), after=["old"])
    assert edits(blocked_one(desired(old, new), observed(launch_of(old)))) == []


def test_one_that_cannot_wake_is_helped_too() -> None:
    asleep, other = (
        engine("asleep", vllm(50 * GIB, can_sleep=True)),
        engine("other", vllm(40 * GIB, can_sleep=True)),
    )
    launches = launch_of(asleep, health=Health.ASLEEP), launch_of(other, id="l2", port=8902)
    state = observed(*launches)
    stack = desired(asleep, other)
    blocked = blocked_one(stack, state)
    assert "engines.other.state=asleep" in edits(blocked)
    assert all(is_cured(remedy, stack, state) for remedy in blocked.remedies)


def test_what_lacks_something_else_has_no_such_remedies() -> None:
    wide: DesiredEngine = engine("wide", spec(tp=4))
    other = engine("other", spec(need=10 * GIB))
    (blocked,) = reconcile(desired(wide, other), observed(launch_of(other))).blocked
    assert blocked.remedies == ()


def test_text_json_and_markdown_say_them() -> None:
    old, new = engine("old", spec(need=60 * GIB)), engine("new", spec(need=30 * GIB))
    plan = reconcile(desired(old, new), observed(launch_of(old)))
    said = "would go with engines.old.state=stopped: frees 61,440 MiB"
    assert any(line.strip() == said for _, line in plan_lines(plan))
    assert said in plan_markdown(plan)
    assert plan_data(plan)["blocked"][0]["remedies"] == [
        {"set": "engines.old.state=stopped", "does": "frees 61,440 MiB"}
    ]


@bounded
@given(situations())
def test_each_remedy_leads_to_a_plan_without_the_block(situation: tuple[FakeWorld, DesiredState]) -> None:
    world, stack = situation
    state = world.seen()
    plan = reconcile(stack, state)
    before = {blocked.replica for blocked in plan.blocked}
    for blocked in plan.blocked:
        for remedy in blocked.remedies:
            after = {left.replica for left in reconcile(applied(remedy, stack), state).blocked}
            assert blocked.replica not in after
            assert after <= before
