"""Places: GPUs, ports, strategies; and the arithmetic where there is none."""

from dataclasses import replace

import pytest

from sage_reconcile.model.actions import GpuTimeline, Plan, Step, Verdict
from sage_reconcile.model.desired import DesiredState, Device, EngineState, Kind, Strategy
from sage_reconcile.model.observed import (
    ForeignLaunch,
    Health,
    ObservedLaunch,
    ObservedNode,
    PortHolder,
)
from sage_reconcile.plan.facts import changed, facts, is_still
from sage_reconcile.plan.reconcile import reconcile
from tests.build import (
    GIB,
    cpu_spec,
    desired,
    engine,
    gap,
    gpu,
    launch_of,
    mark,
    node,
    observed,
    orphan,
    running,
    spec,
)


def plan(
    stack: DesiredState, *launches: ObservedLaunch, nodes: list[ObservedNode] | None = None, **world: object
) -> Plan:
    return reconcile(stack, observed(*launches, nodes=nodes, **world))


def places(made: Plan) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Where each step puts its engine: the node and the GPUs."""
    return {s.id: (s.placement.node, s.placement.gpus) for s in made.steps if s.placement}


def ports(made: Plan) -> list[int]:
    return [step.placement.port for step in made.steps if step.placement]


def blocked(made: Plan) -> str:
    (one,) = made.blocked
    return one.reason


def step(made: Plan, id: str) -> Step:
    return next(one for one in made.steps if one.id == id)


def line(made: Plan, index: int = 0) -> GpuTimeline:
    return made.memory[index]


# GPUs


def test_the_tightest_fit_is_taken() -> None:
    nodes = [node("n1", [gpu(0, used=0), gpu(1, used=50 * GIB), gpu(2, used=45 * GIB)])]
    made = plan(desired(engine("a", spec(need=30 * GIB))), nodes=nodes)
    assert places(made) == {"start:a#0": ("n1", ("GPU-n1-1",))}


def test_the_larger_engine_is_placed_first() -> None:
    nodes = [node("n1", [gpu(0, 80 * GIB), gpu(1, 40 * GIB)])]
    made = plan(desired(engine("a", spec(need=30 * GIB)), engine("b", spec(need=70 * GIB))), nodes=nodes)
    assert places(made) == {"start:b#0": ("n1", ("GPU-n1-0",)), "start:a#0": ("n1", ("GPU-n1-1",))}


def test_pinned_engines_are_placed_before_free_ones() -> None:
    made = plan(
        desired(engine("a", spec(need=60 * GIB)), engine("z", spec(need=60 * GIB), gpus=(0,))),
        nodes=[node("n1", 2)],
    )
    assert places(made) == {"start:z#0": ("n1", ("GPU-n1-0",)), "start:a#0": ("n1", ("GPU-n1-1",))}


@pytest.mark.parametrize("pinned", [(1, 2), ("GPU-n1-1", "GPU-n1-2"), (1, "GPU-n1-2")])
def test_pinned_gpus_by_index_and_uuid(pinned: tuple[int | str, ...]) -> None:
    made = plan(desired(engine("a", spec(tp=2), gpus=pinned)), nodes=[node("n1", 4)])
    assert places(made) == {"start:a#0": ("n1", ("GPU-n1-1", "GPU-n1-2"))}


def test_replicas_share_out_a_long_list_of_gpus() -> None:
    made = plan(desired(engine("a", spec(tp=2), gpus=(3, 2, 1, 0), replicas=2)), nodes=[node("n1", 4)])
    assert places(made) == {
        "start:a#0": ("n1", ("GPU-n1-3", "GPU-n1-2")),
        "start:a#1": ("n1", ("GPU-n1-1", "GPU-n1-0")),
    }


def test_tensor_times_pipeline_parallel_gpus_of_one_node() -> None:
    nodes = [node("n1", 3), node("n2", 4)]
    made = plan(desired(engine("a", spec(tp=2, pp=2))), nodes=nodes)
    assert places(made) == {"start:a#0": ("n2", tuple(f"GPU-n2-{n}" for n in range(4)))}


def test_gpus_of_different_sizes_make_no_group() -> None:
    nodes = [node("n1", [gpu(0), gpu(1, 40 * GIB), gpu(2)])]
    made = plan(desired(engine("a", spec(tp=2))), nodes=nodes)
    assert places(made) == {"start:a#0": ("n1", ("GPU-n1-0", "GPU-n1-2"))}


def test_a_fraction_is_of_the_gpu_at_hand() -> None:
    nodes = [node("n1", [gpu(0, 40 * GIB)])]
    made = plan(desired(engine("a", spec(need=0.5))), nodes=nodes)
    assert (line(made).before_mib, line(made).peak_mib, line(made).after_mib) == (0, 20 * GIB, 20 * GIB)


def test_what_runs_stays_where_it_is_when_it_is_replaced() -> None:
    old = launch_of(engine("a", spec("old", need=60 * GIB)), gpus=(1,))
    made = plan(
        desired(engine("a", spec("new", need=60 * GIB), strategy=Strategy.RECREATE)),
        old,
        nodes=[node("n1", 3)],
    )
    assert places(made) == {"replace:a#0": ("n1", ("GPU-n1-1",))}


def test_a_pinned_engine_stays_on_its_node() -> None:
    old = launch_of(engine("a", spec("old"), gpus=(0,)), on="n2")
    made = plan(desired(engine("a", spec("new"), gpus=(0,))), old, nodes=[node("n1", 1), node("n2", 1)])
    recreated = plan(
        desired(engine("a", spec("new"), gpus=(0,), strategy=Strategy.RECREATE)),
        old,
        nodes=[node("n1", 1), node("n2", 1)],
    )
    assert places(recreated) == {"replace:a#0": ("n2", ("GPU-n2-0",))}
    assert made.blocked == ()


def test_an_unknown_need_is_placed_and_said() -> None:
    nodes = [node("n1", [gpu(0, used=70 * GIB), gpu(1)])]
    made = plan(desired(engine("a", spec(need="auto"))), nodes=nodes)
    assert places(made) == {"start:a#0": ("n1", ("GPU-n1-1",))}
    assert made.steps[0].notes == ("GPU memory need unknown: set gpu_memory to have it counted",)


def test_prefer_gpu_takes_one_where_there_is_one() -> None:
    stack = desired(engine("a", spec(need="auto", device=Device.PREFER_GPU)))
    assert places(plan(stack)) == {"start:a#0": ("n1", ("GPU-n1-0",))}
    on_cpu = plan(stack, nodes=[node("n1", 0)])
    assert places(on_cpu) == {"start:a#0": ("n1", ())}
    assert on_cpu.steps[0].notes == ("no GPU on this host: runs on the CPU",)


def test_cpu_engines_go_where_fewest_are() -> None:
    busy = running(mark("x", cpu_spec(), stack="other"))
    made = plan(desired(engine("a", cpu_spec(), replicas=3)), busy, nodes=[node("n1", 0), node("n2", 0)])
    assert [place[0] for place in places(made).values()] == ["n2", "n1", "n2"]


# No place


def test_the_arithmetic_of_a_blocked_step() -> None:
    nodes = [node("n1", [gpu(0, used=70 * GIB), gpu(1, used=60 * GIB)])]
    made = plan(desired(engine("a", spec(need=40 * GIB))), nodes=nodes)
    assert blocked(made) == (
        "needs 40,960 MiB on 1 GPU; n1 GPU 1: 20,480 of 81,920 MiB free, 61,440 used by others; "
        "n1 GPU 0: 10,240 of 81,920 MiB free, 71,680 used by others"
    )


def test_of_a_large_fleet_the_emptiest_are_named() -> None:
    nodes = [node(f"n{n}", [gpu(g, node=f"n{n}", used=(70 - n) * GIB) for g in range(4)]) for n in range(3)]
    reason = blocked(plan(desired(engine("a", spec(need=40 * GIB))), nodes=nodes))
    assert reason.startswith("needs 40,960 MiB on 1 GPU; n2 GPU 0: 12,288 of 81,920 MiB free")
    assert reason.endswith(
        "; n2 GPU 3: 12,288 of 81,920 MiB free, 69,632 used by others; 8 more with no more free"
    )


@pytest.mark.parametrize(
    ("launch", "pinned", "reason"),
    [
        (spec(tp=4, pp=2), None, "needs 8 GPUs on one node (TP x PP), the largest node has 2"),
        (spec(), (7,), "no node has the GPUs 7"),
        (spec(tp=2), (0, 7), "no node has all of the GPUs 0, 7"),
    ],
)
def test_gpus_that_are_not_there(launch: object, pinned: tuple[int, ...] | None, reason: str) -> None:
    made = plan(desired(engine("a", launch, gpus=pinned)), nodes=[node("n1", 2)])  # type: ignore[arg-type]
    assert blocked(made) == reason


def test_no_gpu_at_all() -> None:
    made = plan(desired(engine("a", spec())), nodes=[node("n1", 0)])
    assert blocked(made) == "needs 1 GPU, there is none on n1; set use_gpu: false to run it on the CPU"
    made = plan(desired(engine("a", spec(tp=2))), nodes=[node("n1", 0)])
    assert blocked(made) == "needs 2 GPUs, there is none on n1", "too large for a CPU"


@pytest.mark.parametrize("device", [Device.GPU, Device.PREFER_GPU])
def test_gpus_that_cannot_be_seen_are_not_absent(device: Device) -> None:
    made = plan(desired(engine("a", spec(device=device))), nodes=[node("n1", 0)], gaps=(gap("gpus"),))
    assert blocked(made) == "the GPUs of n1 cannot be seen: no answer in 20 s"


def test_one_replica_that_has_no_place_does_not_keep_the_others_from_theirs() -> None:
    made = plan(desired(engine("a", spec(need=50 * GIB), replicas=3)), nodes=[node("n1", 2)])
    assert [s.id for s in made.steps] == ["start:a#0", "start:a#1"]
    assert [b.replica.short for b in made.blocked] == ["a#2"]


# Memory over the plan


def test_what_is_stopped_makes_room_for_what_starts() -> None:
    old = running(mark("old", spec(need=70 * GIB)), held=65 * GIB)
    nodes = [node("n1", [gpu(0, used=66 * GIB)])]
    made = plan(desired(engine("new", spec(need=70 * GIB))), old, nodes=nodes)
    assert step(made, "start:new#0").after == ("stop:old#0:l1",)
    assert (line(made).before_mib, line(made).peak_mib, line(made).after_mib) == (
        71 * GIB,
        71 * GIB,
        71 * GIB,
    )


def test_an_engine_whose_state_is_stopped_makes_room_too() -> None:
    last = engine("z", spec(need=70 * GIB))
    made = plan(
        desired(engine("a", spec(need=70 * GIB)), replace(last, state=EngineState.STOPPED)), launch_of(last)
    )
    assert step(made, "start:a#0").after == ("stop:z#0:l1",)


def test_on_a_gpu_nothing_starts_while_something_else_leaves_it() -> None:
    old = launch_of(engine("old", spec(need=30 * GIB)))
    made = plan(desired(engine("new", spec(need=30 * GIB))), old)
    assert (made.steps[1].after, made.steps[1].behind) == ((), ("stop:old#0:l1",))
    assert (line(made).peak_mib, line(made).after_mib) == (30 * GIB, 30 * GIB)


def test_an_engine_that_loads_counts_what_it_declared() -> None:
    loading = replace(
        launch_of(engine("a", spec(need=50 * GIB)), health=Health.STARTING), gpu_mib=(("GPU-n1-0", 2 * GIB),)
    )
    stack = desired(engine("a", spec(need=50 * GIB)), engine("b", spec(need=40 * GIB)))
    assert "needs 40,960 MiB" in blocked(plan(stack, loading, nodes=[node("n1", [gpu(0, used=2 * GIB)])]))


def test_memory_without_a_known_owner_counts_as_ours_first() -> None:
    """Inside a container NVML names no process: what is used is what our engine holds."""
    old = launch_of(engine("a", spec(need=50 * GIB)))
    made = plan(
        desired(engine("a", spec(need=50 * GIB)), engine("b", spec(need=25 * GIB))),
        old,
        nodes=[node("n1", [gpu(0, used=48 * GIB)])],
    )
    assert made.blocked == ()


def test_engines_that_start_on_one_gpu_do_so_one_after_another() -> None:
    made = plan(desired(*(engine(name, spec()) for name in "abc")))
    assert [(s.after, s.behind) for s in made.steps] == [
        ((), ()),
        ((), ("start:a#0",)),
        ((), ("start:b#0",)),
    ]


def test_one_that_is_loading_already_is_waited_for_too() -> None:
    made = plan(
        desired(engine("a", spec()), engine("b", spec())),
        launch_of(engine("a", spec()), health=Health.STARTING),
    )
    assert step(made, "start:b#0").behind == ("await:a#0",)


# Strategies


OLD = engine("a", spec("old", need=30 * GIB))


def strategy_of(made: Plan) -> tuple[Strategy | None, str]:
    return made.steps[0].strategy, made.steps[0].reason


def test_surge_where_both_fit() -> None:
    made = plan(desired(engine("a", spec("new", need=40 * GIB))), launch_of(OLD))
    assert strategy_of(made) == (Strategy.SURGE, "the new one fits beside the old one")
    assert ports(made) == [8902]


def test_recreate_where_they_do_not() -> None:
    made = plan(desired(engine("a", spec("new", need=60 * GIB))), launch_of(OLD))
    strategy, why = strategy_of(made)
    assert strategy is Strategy.RECREATE
    assert why == (
        "no room beside the old one: needs 61,440 MiB on 1 GPU; n1 GPU 0: 51,200 of 81,920 MiB free"
    )
    assert ports(made) == [8901]
    assert (line(made).peak_mib, line(made).after_mib) == (60 * GIB, 60 * GIB)


@pytest.mark.parametrize(
    ("new", "health", "why"),
    [
        (engine("a", spec("new"), strategy=Strategy.RECREATE), Health.READY, "rollout.strategy is recreate"),
        (engine("a", spec("new")), Health.BACKOFF, "the old one does not serve"),
        (
            engine("a", spec("new"), port=8901),
            Health.READY,
            "port 8901 is fixed by the file, so the old one leaves it first",
        ),
    ],
)
def test_recreate_for_other_reasons(new: object, health: Health, why: str) -> None:
    made = plan(desired(new), launch_of(OLD, health=health))  # type: ignore[arg-type]
    assert strategy_of(made) == (Strategy.RECREATE, why)


def test_a_surge_that_is_asked_for_and_does_not_fit_is_blocked() -> None:
    new = engine("a", spec("new", need=60 * GIB), strategy=Strategy.SURGE)
    assert blocked(plan(desired(new), launch_of(OLD))).startswith(
        "rollout.strategy is surge, but no room beside the old one: needs 61,440 MiB on 1 GPU"
    )


def test_a_replacement_that_fits_nowhere_keeps_the_old_one() -> None:
    made = plan(desired(engine("a", spec("new", need=90 * GIB))), launch_of(OLD))
    assert made.steps == ()
    assert blocked(made).startswith("needs 92,160 MiB on 1 GPU")


def test_replicas_are_replaced_one_at_a_time() -> None:
    old = engine("a", spec("old"), replicas=3)
    launches = [launch_of(old, n, id=f"l{n}", port=8901 + n) for n in range(3)]
    made = plan(desired(engine("a", spec("new"), replicas=3)), *launches)
    assert [s.after for s in made.steps] == [(), ("replace:a#0",), ("replace:a#1",)]


def test_a_replica_that_is_missing_comes_back_before_the_next_one_is_replaced() -> None:
    old = engine("a", spec("old"), replicas=2)
    made = plan(desired(engine("a", spec("new"), replicas=2)), launch_of(old, 1))
    assert [(s.id, s.after) for s in made.steps] == [("start:a#0", ()), ("replace:a#1", ("start:a#0",))]


# Ports


def test_automatic_ports_by_kind_around_what_is_taken() -> None:
    nodes = [node("n1", 0, [8901, 8090])]
    launch = running(mark("x", cpu_spec(), stack="other", port=8902))
    theirs = ForeignLaunch(mark("y", cpu_spec(), port=8903), (5,), "bob")
    embed = engine("e", cpu_spec(kind=Kind.EMBEDDING))
    made = plan(
        desired(engine("a", cpu_spec(), replicas=2), engine("b", cpu_spec(), port=8904), embed),
        launch,
        nodes=nodes,
        foreign=(theirs,),
    )
    found = {s.id: s.placement.port for s in made.steps if s.placement}
    assert found == {"start:a#0": 8905, "start:a#1": 8906, "start:b#0": 8904, "start:e#0": 8091}


def test_replicas_count_up_from_a_fixed_port() -> None:
    assert ports(plan(desired(engine("a", cpu_spec(), port=9500, replicas=3)))) == [9500, 9501, 9502]


@pytest.mark.parametrize(
    ("holder", "who"),
    [
        (PortHolder(8950, 77, "nginx"), "process 77 (nginx)"),
        (PortHolder(8950), "a process of another user"),
    ],
)
def test_a_fixed_port_that_is_held_names_the_holder(holder: PortHolder, who: str) -> None:
    made = plan(desired(engine("a", cpu_spec(), port=8950)), nodes=[node("n1", 0, [holder])])
    assert blocked(made) == f"port 8950 on n1 is held by {who}"


def test_a_renamed_engine_takes_over_its_fixed_port() -> None:
    old = launch_of(engine("before", cpu_spec(), port=8901))
    made = plan(desired(engine("after", cpu_spec(), port=8901)), old)
    assert [(s.id, s.after) for s in made.steps] == [
        ("stop:before#0:l1", ()),
        ("start:after#0", ("stop:before#0:l1",)),
    ]


def test_a_port_that_a_leftover_holds_is_free_once_it_is_reaped() -> None:
    left = orphan(mark("a", cpu_spec()), pids=(77,))
    nodes = [node("n1", 0, [PortHolder(8901, 77, "python")])]
    made = plan(desired(engine("a", cpu_spec(), port=8901)), nodes=nodes, orphans=(left,))
    assert step(made, "start:a#0").after == ("reap:a#0:l1",)


def test_a_stranger_on_a_leftovers_port_is_in_the_way() -> None:
    left = orphan(mark("a", cpu_spec()), pids=(77,))
    nodes = [node("n1", 0, [PortHolder(8901, 5, "nginx")])]
    made = plan(desired(engine("a", cpu_spec(), port=8901)), nodes=nodes, orphans=(left,))
    assert blocked(made) == "port 8901 on n1 is held by process 5 (nginx)"


def test_no_port_left() -> None:
    made = plan(desired(engine("a", cpu_spec())), nodes=[node("n1", 0, range(8901, 9000))])
    assert blocked(made) == "no free port on n1 in 8901-8999"


# Facts of a stored plan


def test_facts_that_are_still_so() -> None:
    state = observed(launch_of(OLD), nodes=[node("n1", [gpu(0, used=31 * GIB)])])
    later = replace(state, at=state.at + 99, nodes=(node("n1", [gpu(0, used=31 * GIB + 900)]),))
    assert changed(facts(state), facts(later)) == ()


def test_every_fact_that_changed_is_named() -> None:
    before = observed(launch_of(OLD), nodes=[node("n1", 2)])
    restarted = replace(launch_of(OLD), supervisor_pid=5)
    after = observed(
        restarted,
        running(mark("b", id="l2", port=8902)),
        nodes=[replace(node("n1", [gpu(0, used=33 * GIB)]), boot_id="another")],
        orphans=(orphan(mark("c", id="l3")),),
    )
    found = changed(facts(before), facts(after))
    assert [text.partition(" changed")[0].partition(" is ")[0] for text in found] == [
        "GPU n1/GPU-n1-1",
        "boot of n1",
        f"launch {launch_of(OLD).mark.id}",
        f"launch {mark('b', id='l2').id}",
        f"leftovers of {mark('c', id='l3').id}",
    ]
    assert changed(facts(after), facts(before))[0] == "GPU n1/GPU-n1-1 is new"


def test_memory_of_others_counts_from_a_gib_on() -> None:
    before, after = (observed(nodes=[node("n1", [gpu(0, used=used)])]) for used in (0, 1024))
    assert changed(facts(before), facts(after)) == (
        "memory of others on GPU n1/GPU-n1-0 changed: 0 -> 1024 MiB",
    )


def test_what_was_agreed_to_is_still_the_plan() -> None:
    """While the same is done to the same processes, whatever has been said of them since."""
    stack = desired(engine("chat", cpu_spec("new")), engine("other", cpu_spec("o")))
    before = launch_of(engine("chat", cpu_spec("old")))
    then = plan(stack, before)
    assert is_still(plan(stack, replace(before, since=1.0, message="busy")), then)
    assert is_still(replace(then, kept=(), notes=("another note",)), then)
    again = replace(before, mark=replace(before.mark, launch="another"))
    assert not is_still(plan(stack, again), then)
    assert not is_still(plan(stack), then)
    assert not is_still(plan(desired(stack.engines[0]), before), then)


def test_an_engine_that_became_ready_meanwhile_makes_no_other_plan() -> None:
    chat = engine("chat", cpu_spec())
    stack = desired(chat, engine("other", cpu_spec("o")))
    starts = plan(stack, replace(launch_of(chat), health=Health.STARTING))
    assert {step.verdict for step in starts.steps} == {Verdict.AWAIT, Verdict.START}
    assert is_still(plan(stack, launch_of(chat)), starts)
