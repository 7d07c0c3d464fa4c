"""What must hold of every plan, on generated fleets and stacks."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sage_reconcile.apply.hands import LaunchFailed
from sage_reconcile.model.actions import Launch, Plan, Reap, Sleep, Step, Stop, Verdict
from sage_reconcile.model.desired import DesiredState, LiveSpec
from sage_reconcile.model.observed import ForeignLaunch, Health, ObservedNode, Orphan
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.render.plan_data import plan_data
from tests.build import gap, mark, node, orphan, running, spec
from tests.fakes import FakeWorld, apply, need
from tests.plan.fleets import hosts, stacks

T = TypeVar("T")

bounded = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def as_bytes(plan: Plan) -> bytes:
    return json.dumps(plan_data(plan)).encode()


def settled(nodes: list[ObservedNode], stack: DesiredState, seed: int) -> FakeWorld:
    """A world in which the stack was applied."""
    world = FakeWorld(nodes, seed)
    asyncio.run(apply(world, stack))
    return world


@st.composite
def situations(draw: st.DrawFn) -> tuple[FakeWorld, DesiredState]:
    """A world in which an earlier stack was applied and some things went wrong since; the stack of now."""
    seed = draw(st.integers(0, 3))
    world = settled(draw(hosts()), draw(stacks()), seed)
    for process in list(world.processes.values()):
        fate = draw(st.sampled_from(["fine"] * 6 + ["failing", "backoff", "starting", "exited", "orphan"]))
        if fate == "orphan":
            del world.processes[process.mark.launch]
            world.add_orphan(Orphan(process.mark, (process.pid + 1,), tuple(sorted(process.held.items()))))
        elif fate != "fine" and process.health is Health.READY:
            process.health = Health(fate)
            world.adrift.add(process.mark.launch)
    return world, draw(stacks())


@bounded
@given(situations())
def test_planning_after_a_complete_apply_gives_no_steps(situation: tuple[FakeWorld, DesiredState]) -> None:
    world, stack = situation
    plan, outcomes = asyncio.run(apply(world, stack))
    assert [o.reason for o in outcomes if o.reason] == []
    again = reconcile(stack, world.seen())
    if not plan.blocked:
        assert [(step.id, step.cause) for step in again.steps] == []
        assert again.blocked == ()


@bounded
@given(situations())
def test_what_was_blocked_comes_to_rest(situation: tuple[FakeWorld, DesiredState]) -> None:
    world, stack = situation
    for _ in range(6):
        plan, _ = asyncio.run(apply(world, stack))
        if not plan.steps:
            return
    raise AssertionError(f"after 6 passes still: {[(s.id, s.cause) for s in plan.steps]}")


@bounded
@given(situations(), st.integers(0, 2**16))
def test_no_order_of_execution_takes_more_memory_or_ports_than_there_are(
    situation: tuple[FakeWorld, DesiredState], seed: int
) -> None:
    world, stack = situation
    world.violations.clear()
    world._random = random.Random(seed)
    asyncio.run(apply(world, stack))
    assert world.violations == []


@bounded
@given(situations())
def test_the_plan_says_the_peak_of_each_gpu(situation: tuple[FakeWorld, DesiredState]) -> None:
    world, stack = situation
    world.peak.clear()
    plan, _ = asyncio.run(apply(world, stack))
    for line in plan.memory:
        assert world.peak[line.node, line.uuid] <= line.peak_mib <= max(line.total_mib, line.before_mib)


@bounded
@given(situations())
def test_the_plan_in_its_listed_order_never_takes_more_than_there_is(
    situation: tuple[FakeWorld, DesiredState],
) -> None:
    world, stack = situation
    plan = reconcile(stack, world.seen())
    asyncio.run(serially(world, plan))
    assert world.violations == []


async def serially(world: FakeWorld, plan: Plan) -> None:
    """Does what changes the host, step by step as listed."""
    for step in plan.steps:
        started = None
        for action in step.actions:
            match action:
                case Launch():
                    started = await world.launch(action)
                    await world.await_ready(started, 1.0)
                case Stop(launch, drain):
                    await world.stop(launch, drain)
                case Reap(left):
                    await world.reap(left)
                case Sleep(launch):
                    await world.sleep(launch or started)  # type: ignore[arg-type]
                case _:
                    pass


@bounded
@given(situations())
def test_steps_wait_only_for_steps_listed_before_them(situation: tuple[FakeWorld, DesiredState]) -> None:
    world, stack = situation
    plan = reconcile(stack, world.seen())
    assert len({step.id for step in plan.steps}) == len(plan.steps)
    listed: set[str] = set()
    for step in plan.steps:
        assert set(step.after) <= listed
        listed.add(step.id)
    TopologicalSorter({step.id: step.after for step in plan.steps}).prepare()


@bounded
@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_is_irrelevant(
    situation: tuple[FakeWorld, DesiredState], rng: random.Random
) -> None:
    world, stack = situation
    observed = replace(world.seen(), gaps=(gap("gpus", "n9"), gap("gpus", "n8")))
    one = as_bytes(reconcile(stack, observed))
    assert as_bytes(reconcile(stack, observed)) == one

    def shuffled(items: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(rng.sample(items, len(items)))

    nodes = tuple(
        replace(n, gpus=shuffled(n.gpus), ports=shuffled(n.ports)) for n in shuffled(observed.nodes)
    )
    other = replace(
        observed,
        nodes=nodes,
        launches=shuffled(observed.launches),
        orphans=shuffled(observed.orphans),
        exits=shuffled(observed.exits),
        gaps=shuffled(observed.gaps),
    )
    assert as_bytes(reconcile(replace(stack, engines=shuffled(stack.engines)), other)) == one


@bounded
@given(situations())
def test_what_is_not_of_this_stack_is_never_touched(situation: tuple[FakeWorld, DesiredState]) -> None:
    world, stack = situation
    strangers = mark("a", id="other-stack", stack="another", port=8990, gpus=(), launch=spec(need=0))
    world.add(running(strangers))
    left = mark("b", id="other-leftover", stack="another", port=8991, gpus=())
    world.add_orphan(orphan(left, pids=(5,)))
    theirs = mark("a", id="their-launch", port=8992, gpus=(), home="/home/else/.sage")
    world.foreign.append(ForeignLaunch(theirs, (6,), "else"))
    world.calls.clear()
    asyncio.run(apply(world, stack))
    touched = {call.rpartition(" ")[2] for call in world.calls}
    assert not touched & {"other-stack", "other-leftover", "their-launch"}
    assert {"other-stack"} <= world.processes.keys()


@bounded
@given(situations(), st.sampled_from(["processes", "node", "gpus"]), st.sampled_from(["n1", "n2"]))
def test_a_gap_never_ends_a_process(situation: tuple[FakeWorld, DesiredState], what: str, where: str) -> None:
    world, stack = situation
    whole = world.seen()
    keep_gpus = what == "processes"
    nodes = tuple(n if n.name != where or keep_gpus else replace(n, gpus=()) for n in whole.nodes)
    blind = replace(whole, nodes=nodes, gaps=(gap(what, where),))
    full = {step.id for step in reconcile(stack, whole).steps if nodes_of_ended(step)}
    for step in reconcile(stack, blind).steps:
        if where in nodes_of_ended(step):
            assert what == "gpus", f"{step.id} although {what} of {where} cannot be seen"
            assert step.id in full, f"{step.id}, only because GPUs of {where} cannot be seen: {step.cause}"
    gone = tuple(launch for launch in whole.launches if launch.mark.placement.node != where)
    unseen = replace(blind, launches=gone, orphans=())
    if what != "gpus":
        seen = {launch.replica for launch in gone}
        starts = [s for s in reconcile(stack, unseen).steps if s.verdict is Verdict.START]
        assert [s.id for s in starts if s.replica not in seen] == []


def nodes_of_ended(step: Step) -> set[str]:
    """The nodes on which the step ends a launch."""
    return {action.launch.mark.placement.node for action in step.actions if isinstance(action, Stop)}


EDITS: dict[str, Callable[[DesiredState], DesiredState]] = {
    "label": lambda s: edited(s, lambda e: replace(e, route=replace(e.route, label="new", weight=9))),
    "alias": lambda s: edited(
        s, lambda e: replace(e, route=replace(e.route, names=tuple(sorted({*e.route.names, "z"}))))
    ),
    "live": lambda s: edited(s, lambda e: replace(e, live=replace(e.live, drain=7.0))),
    "order": lambda s: replace(s, engines=s.engines[::-1]),
    "rollout": lambda s: edited(s, lambda e: replace(e, after=())),
}


def edited(stack: DesiredState, change: Callable[..., object]) -> DesiredState:
    return replace(stack, engines=tuple(change(engine) for engine in stack.engines))  # type: ignore[misc]


@bounded
@given(hosts(), stacks(), st.sampled_from(sorted(EDITS)))
def test_an_edit_that_needs_no_process_keeps_every_process(
    nodes: list[ObservedNode], stack: DesiredState, edit: str
) -> None:
    world = settled(nodes, stack, 0)
    before = world.pids()
    asyncio.run(apply(world, EDITS[edit](stack)))
    after = world.pids()
    assert before.items() <= after.items()


@bounded
@given(situations())
def test_every_launch_has_its_own_port_and_whole_gpus_of_one_node(
    situation: tuple[FakeWorld, DesiredState],
) -> None:
    world, stack = situation
    plan = reconcile(stack, world.seen())
    owner = {place: gpu.node for place, gpu in world.gpus.items()}
    ports = [(p.mark.placement.node, p.mark.placement.port) for p in world.processes.values()]
    leaving = {a.launch.mark.launch for s in plan.steps for a in s.actions if isinstance(a, Stop)}
    ports = [
        (p.mark.placement.node, p.mark.placement.port)
        for p in world.processes.values()
        if p.mark.launch not in leaving
    ]
    for step in plan.steps:
        for action in step.actions:
            if isinstance(action, Launch):
                place = action.placement
                ports.append((place.node, place.port))
                on_gpu = action.spec.device.value != "cpu" and bool(place.gpus)
                assert len(place.gpus) == (action.spec.gpu_count if on_gpu else 0)
                assert len(set(place.gpus)) == len(place.gpus)
                assert all(owner[place.node, uuid] == place.node for uuid in place.gpus)
    assert len(set(ports)) == len(ports)


@bounded
@given(situations())
def test_every_wanted_replica_has_its_word_in_the_plan(situation: tuple[FakeWorld, DesiredState]) -> None:
    world, stack = situation
    plan = reconcile(stack, world.seen())
    told = (
        {s.replica for s in plan.steps} | {b.replica for b in plan.blocked} | {k.replica for k in plan.kept}
    )
    for engine in stack.engines:
        for number in range(engine.replicas):
            assert any(r.engine == engine.name and r.replica == number for r in told)


def test_the_world_catches_what_takes_too_much() -> None:
    world = FakeWorld([node("n1", 1)])
    replica, big = mark("a").replica, spec(need=0.6)

    def order(port: int) -> Launch:
        place = mark("a", big, port=port).placement
        return Launch(replica, big, "f", place, LiveSpec())

    async def launch_both() -> None:
        await world.launch(order(8901))
        with pytest.raises(LaunchFailed, match="port 8901 is in use"):
            await world.launch(order(8901))
        with pytest.raises(LaunchFailed, match="out of memory"):
            await world.launch(order(8902))

    asyncio.run(launch_both())
    assert len(world.violations) == 3  # the last also starts beside another on its GPU
    assert need(big, world.nodes[0].gpus[0]) == 49152


@bounded
@given(situations())
def test_the_memory_of_the_steps_adds_up_to_that_of_the_gpu(
    situation: tuple[FakeWorld, DesiredState],
) -> None:
    world, stack = situation
    for line in reconcile(stack, world.seen()).memory:
        levels = [line.before_mib, *(step.after_mib for step in line.steps)]
        assert [step.before_mib for step in line.steps] == levels[:-1]
        assert levels[-1] == line.after_mib
        assert all(step.peak_mib <= line.peak_mib for step in line.steps)
