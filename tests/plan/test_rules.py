"""The rule table, one rule after another: verdict and cause; then the states that interrupted work leaves."""

from dataclasses import replace

import pytest

from sage_reconcile.model.actions import (
    AwaitReady,
    Launch,
    Plan,
    Reap,
    Reroute,
    Step,
    Stop,
    UpdateLive,
    Verdict,
)
from sage_reconcile.model.desired import (
    DesiredEngine,
    DesiredState,
    EngineState,
    HealthSpec,
    Kind,
    LaunchSpec,
    LiveSpec,
    ReplicaId,
    RestartPolicy,
    RestartSpec,
    RouteSpec,
)
from sage_reconcile.model.observed import ExternalHealth, Health, LastExit, ObservedLaunch, ObservedState
from sage_reconcile.plan.classify import RULES, duration
from sage_reconcile.plan.policy import Policy
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.route.table import routing_table
from tests.build import (
    GIB,
    NOW,
    cpu_spec,
    desired,
    engine,
    gap,
    launch_of,
    mark,
    node,
    observed,
    orphan,
    running,
    spec,
)

CHAT = engine("chat", spec("m"))


def plan(
    stack: DesiredState, *launches: ObservedLaunch, policy: Policy | None = None, **world: object
) -> Plan:
    state = observed(*launches, **world)  # type: ignore[arg-type]
    return reconcile(stack, state, policy or Policy())


def only_step(made: Plan) -> Step:
    (step,) = made.steps
    return step


def causes(made: Plan) -> list[tuple[str, str]]:
    return [(step.id, step.cause) for step in made.steps]


def words(made: Plan) -> list[tuple[str, str]]:
    return [(str(kept.verdict), kept.reason) for kept in made.kept]


def routed(state: ObservedState, stack: DesiredState) -> ObservedState:
    return replace(state, routing=routing_table(stack, state))


def test_the_table_ends_with_a_rule_that_is_total() -> None:
    assert RULES[-1].__name__ == "keep_the_rest"


# One rule after another


@pytest.mark.parametrize("what", ["processes", "node"])
def test_what_cannot_be_seen_is_held(what: str) -> None:
    changed = desired(engine("chat", spec("other")), engine("new", spec("n")))
    made = plan(changed, launch_of(CHAT), gaps=(gap(what),))
    assert made.steps == ()
    assert words(made) == [("hold", "no answer in 20 s")] * 2
    assert made.gaps == (gap(what),)


def test_what_is_no_longer_wanted_is_held_too_where_it_cannot_be_seen() -> None:
    made = plan(desired(), launch_of(CHAT), gaps=(gap(),))
    assert (made.steps, words(made)) == ((), [("hold", "no answer in 20 s")])


def test_a_gap_of_another_node_holds_what_is_not_seen_and_nothing_else() -> None:
    stack = desired(engine("chat", spec("new")), engine("lost", spec("m")))
    made = plan(stack, launch_of(CHAT), nodes=[node("n1", 1), node("n2", 1)], gaps=(gap(on="n2"),))
    assert [step.id for step in made.steps] == ["replace:chat#0"]
    assert words(made) == [("hold", "no answer in 20 s")]


def test_a_backoff_holds_one_replica() -> None:
    hold = ((ReplicaId("demo", "chat", 0), "failed 3 times; next attempt in 8 s"),)
    made = plan(desired(CHAT, engine("b", spec("b"))), policy=Policy(hold=hold))
    assert [step.id for step in made.steps] == ["start:b#0"]
    assert words(made) == [("hold", "failed 3 times; next attempt in 8 s")]


def external(**changes: object) -> DesiredEngine:
    return engine("chat", cpu_spec("m", runtime="external", url="http://far:9000"), **changes)  # type: ignore[arg-type]


def test_an_external_engine_is_routed_to_then_kept() -> None:
    stack = desired(external(names=["m"]))
    step = only_step(plan(stack))
    assert (step.id, step.verdict, step.actions) == ("update:chat#0", Verdict.UPDATE, (Reroute(),))
    assert (step.cause, step.changes) == ("route: (none) -> chat, m", ("(none) -> chat, m",))
    settled = reconcile(stack, routed(observed(), stack))
    assert settled.steps == ()
    assert words(settled) == [("keep", "external: probed and routed, never owned")]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"names": ["x"]}, "route: names: chat -> chat, x"),
        ({"route": RouteSpec(("chat",), weight=3)}, "route: weight: 1 -> 3"),
        ({"url": "http://near:9000/"}, "route: url: http://far:9000 -> http://near:9000"),
        ({"model": "n"}, "route: model: m -> n"),
        ({"api_key": "${env:K}"}, "route: api_key: (none) -> ${env:K}"),
        ({"kind": Kind.EMBEDDING}, "route: kind: llm -> embedding"),
        ({"state": EngineState.STOPPED}, "state: stopped; route: chat -> (none)"),
    ],
)
def test_what_is_published_of_an_external_engine_is_updated(changes: dict[str, object], cause: str) -> None:
    own = {key: value for key, value in changes.items() if key in ("names", "route", "state")}
    launch = {key: value for key, value in changes.items() if key not in own}
    base = external(**own)
    edited = desired(replace(base, launch=replace(base.launch, **launch)))  # type: ignore[arg-type]
    state = routed(observed(), desired(external()))
    step = only_step(reconcile(edited, state))
    assert (step.verdict, step.cause, step.actions) == (Verdict.UPDATE, cause, (Reroute(),))
    assert reconcile(edited, routed(state, edited)).steps == ()


def test_the_routes_of_external_engines_that_left_the_file_end() -> None:
    state = routed(observed(), desired(external(names=["m"])))
    (cause,) = causes(reconcile(desired(), state))
    assert cause == ("update:chat#0", "no longer in the stack file; route: chat, m -> (none)")
    assert reconcile(desired(), routed(state, desired())).steps == ()
    assert reconcile(desired(), state, Policy(targets=frozenset({"other"}))).steps == ()
    assert reconcile(desired(stack="other"), state).steps == ()
    stopped = reconcile(desired(replace(CHAT, state=EngineState.STOPPED)), state)
    assert causes(stopped) == [("update:chat#0", "state: stopped; route: chat, m -> (none)")]


def test_an_external_name_that_another_engine_keeps_is_no_lasting_difference() -> None:
    stack = desired(external(), engine("a", spec("another model"), names=["chat"]))
    state = routed(observed(launch_of(stack.engines[0])), stack)
    assert reconcile(stack, state).steps == ()


def test_an_external_engine_needs_no_look_at_processes() -> None:
    made = plan(desired(external()), gaps=(gap(),))
    assert causes(made) == [("update:chat#0", "route: (none) -> chat")]
    assert words(plan(desired(external()), launch_of(CHAT), gaps=(gap(),))) == [("hold", "no answer in 20 s")]


def test_external_engines_that_do_not_answer_are_noted() -> None:
    health = [
        ExternalHealth("z", Health.FAILING, "does not answer: connection refused"),
        ExternalHealth("fine", Health.READY),
        ExternalHealth("a", Health.UNKNOWN, "gave no answer within 5 s"),
    ]
    assert plan(desired(), external=tuple(health)).notes == (
        "a (external) gave no answer within 5 s",
        "z (external) does not answer: connection refused",
    )


def test_what_became_external_is_stopped() -> None:
    made = plan(desired(external()), launch_of(CHAT))
    assert causes(made) == [("stop:chat#0:l1", "now external: http://far:9000 serves it")]


def test_a_stopped_engine_is_stopped_with_every_launch() -> None:
    stopped = replace(CHAT, state=EngineState.STOPPED)
    two = launch_of(CHAT), running(mark("chat", spec("older"), id="l0", port=8902))
    made = plan(desired(stopped), *two)
    assert dict(causes(made)) == {"stop:chat#0:l0": "state: stopped", "stop:chat#0:l1": "state: stopped"}
    assert words(plan(desired(stopped))) == [("keep", "stopped")]


def test_the_caller_says_why_engines_are_stopped() -> None:
    stopped = replace(CHAT, state=EngineState.STOPPED)
    made = plan(desired(stopped), launch_of(CHAT), policy=Policy(stop_cause="sage stop"))
    assert only_step(made).cause == "sage stop"


def test_what_is_missing_is_started() -> None:
    step = only_step(plan(desired(CHAT)))
    assert (step.id, step.verdict, step.cause) == ("start:chat#0", Verdict.START, "not running")
    assert [type(action) for action in step.actions] == [Launch, AwaitReady, Reroute]


def test_the_last_exit_is_the_cause_of_a_start() -> None:
    exits = ((CHAT_ID, LastExit(NOW - 130, 137, None, True, "out of memory")),)
    made = plan(desired(CHAT), exits=exits)
    assert only_step(made).cause == "not running: exited with code 137 (out of memory), 2 min ago"
    exits = ((CHAT_ID, LastExit(NOW - 5, None, 9, True)),)
    assert only_step(plan(desired(CHAT), exits=exits)).cause == "not running: killed by signal 9, 5 s ago"


CHAT_ID = ReplicaId("demo", "chat", 0)


def test_an_exited_launch_is_started_again_where_it_was() -> None:
    made = plan(desired(CHAT), running(mark("chat", port=8917), Health.EXITED, message="gave up: 5 exits"))
    step = only_step(made)
    assert step.cause == "not running: gave up: 5 exits"
    assert isinstance(step.actions[0], Stop)
    assert step.placement is not None
    assert step.placement.port == 8917


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        (spec("A"), spec("B"), "model: A -> B"),
        (spec(args=[("max-len", 2048)]), spec(args=[("max-len", 4096)]), "args.max-len: 2048 -> 4096"),
        (spec(), spec(args=[("eager", True)]), "args.eager: (none) -> true"),
        (spec(need=10 * GIB), spec(need="auto"), "gpu_memory: 10240 -> auto"),
        (
            replace(spec(), env=(("A", "1"),)),
            replace(spec(), env=(("A", "${env:X}"), ("B", "2"))),
            "env.A: 1 -> ${env:X}; env.B: (none) -> 2",
        ),
        (
            replace(spec(), extra_args=("--a", "1")),
            replace(spec(), extra_args=("--a", "2")),
            "extra_args: --a 1 -> --a 2",
        ),
    ],
)
def test_what_differs_is_replaced(old: LaunchSpec, new: LaunchSpec, cause: str) -> None:
    step = only_step(plan(desired(engine("chat", new)), launch_of(engine("chat", old))))
    assert (step.verdict, step.cause) == (Verdict.REPLACE, cause)
    assert step.changes == tuple(cause.split("; "))


def test_a_launch_of_another_version_is_replaced_and_told_so() -> None:
    launch = running(replace(mark("chat", spec("m")), fingerprint="0ld"))
    assert only_step(plan(desired(CHAT), launch)).cause == "launched by another version of sage"


@pytest.mark.parametrize(
    ("pinned", "cause"),
    [
        (replace(CHAT, placement=replace(CHAT.placement, port=8950)), "port changed: 8901 -> 8950"),
        (replace(CHAT, placement=replace(CHAT.placement, gpus=(1,))), "gpus changed: GPU-n1-0 -> 1"),
        (
            replace(CHAT, placement=replace(CHAT.placement, gpus=("GPU-n1-1",))),
            "gpus changed: GPU-n1-0 -> GPU-n1-1",
        ),
    ],
)
def test_what_is_not_where_the_file_pins_it_is_replaced(pinned: DesiredEngine, cause: str) -> None:
    made = plan(desired(pinned), launch_of(CHAT), nodes=[node("n1", 2)])
    assert causes(made) == [("replace:chat#0", cause)]


@pytest.mark.parametrize("gpus", [(0,), ("GPU-n1-0",)])
def test_what_is_where_the_file_pins_it_is_kept(gpus: tuple[int | str, ...]) -> None:
    pinned = engine("chat", spec("m"), gpus=gpus, port=8901)
    assert plan(desired(pinned), launch_of(CHAT)).steps == ()


def test_gpus_that_cannot_be_seen_do_not_misplace_anything() -> None:
    pinned = engine("chat", spec("m"), gpus=(0,))
    made = plan(desired(pinned), launch_of(CHAT), nodes=[node("n1", 0)], gaps=(gap("gpus"),))
    assert made.steps == ()


def test_a_restart_replaces_although_nothing_changed() -> None:
    made = plan(desired(CHAT), launch_of(CHAT), policy=Policy(restart=frozenset({"chat"})))
    assert causes(made) == [("replace:chat#0", "restart asked for")]


def test_sleep_and_wake() -> None:
    asleep = replace(CHAT, state=EngineState.ASLEEP)
    assert causes(plan(desired(asleep), launch_of(CHAT))) == [("sleep:chat#0", "state: asleep")]
    made = plan(desired(CHAT), launch_of(CHAT, health=Health.ASLEEP))
    assert causes(made) == [("wake:chat#0", "state: running")]
    assert plan(desired(asleep), launch_of(CHAT, health=Health.ASLEEP)).steps == ()


def test_live_settings_are_updated_in_place() -> None:
    live = LiveSpec(HealthSpec(interval=5.0), RestartSpec(RestartPolicy.NEVER), drain=5.0)
    step = only_step(plan(desired(replace(CHAT, live=live)), launch_of(CHAT)))
    assert step.verdict is Verdict.UPDATE
    assert step.cause == (
        "live settings: drain: 30.0 -> 5.0; health.interval: 10.0 -> 5.0; restart.policy: always -> never"
    )
    assert [type(action) for action in step.actions] == [UpdateLive, Reroute]


def test_live_settings_that_cannot_be_read_are_left_alone() -> None:
    launch = replace(launch_of(CHAT), live=None)
    assert plan(desired(replace(CHAT, live=LiveSpec(drain=1.0))), launch).steps == ()


@pytest.mark.parametrize(
    ("route", "cause"),
    [
        (RouteSpec(("chat", "x")), "route: names: chat -> chat, x"),
        (RouteSpec(("chat",), weight=3), "route: weight: 1 -> 3"),
        (RouteSpec(("chat",), max_concurrent=8), "route: max_concurrent: 256 -> 8"),
        (RouteSpec(("chat",), hold=60.0), "route: hold: 30 s -> 60 s"),
        (RouteSpec(("chat",), policy="round_robin"), "route: policy: least_inflight -> round_robin"),
        (RouteSpec(("chat",), queue_policy="priority"), "route: queue.policy: fifo -> priority"),
        (RouteSpec(("chat",), queue_size=0), "route: queue.size: 1000 -> 0"),
        (RouteSpec(("chat",), queue_timeout=0.5), "route: queue.timeout: 60 s -> 0.5 s"),
        (RouteSpec(("chat",), first_byte_timeout=5.0), "route: first_byte_timeout: (none) -> 5 s"),
        (RouteSpec(("chat",), idle_timeout=2.0), "route: idle_timeout: (none) -> 2 s"),
        (RouteSpec(("chat",), metadata=(("team", "a"),)), "route: metadata: (none) -> team=a"),
    ],
)
def test_a_route_is_updated_without_a_process(route: RouteSpec, cause: str) -> None:
    state = routed(observed(launch_of(CHAT)), desired(CHAT))
    step = only_step(reconcile(desired(replace(CHAT, route=route)), state))
    assert (step.verdict, step.cause, step.actions) == (Verdict.UPDATE, cause, (Reroute(),))


def test_a_name_that_another_engine_keeps_is_no_lasting_difference() -> None:
    other = engine("z", spec("another model"), names=["chat"])
    stack = desired(CHAT, other)
    state = routed(observed(launch_of(CHAT), launch_of(other, id="l2", port=8902)), stack)
    assert reconcile(stack, state).steps == ()


def test_a_name_that_another_stack_keeps_is_no_lasting_difference() -> None:
    neighbour = desired(engine("chat", spec("m")), stack="aaa")
    theirs = running(mark("chat", id="l9", port=8909, stack="aaa"))
    state = routed(observed(launch_of(CHAT), theirs), neighbour)
    state = routed(state, desired(CHAT))
    assert reconcile(desired(CHAT), state).steps == ()


@pytest.mark.parametrize(
    ("health", "cause"),
    [
        (Health.STARTING, "is starting for 10 min: loading weights"),
        (Health.FAILING, "is failing its probes for 10 min: loading weights"),
        (Health.BACKOFF, "crashed for 10 min: loading weights"),
    ],
)
def test_what_is_on_its_way_is_waited_for(health: Health, cause: str) -> None:
    launch = running(mark("chat", spec("m")), health, started=NOW - 600, message="loading weights")
    made = plan(desired(CHAT), launch)
    assert causes(made) == [("await:chat#0", cause)]
    assert not made.has_changes


@pytest.mark.parametrize("health", [Health.READY, Health.UNKNOWN])
def test_the_rest_is_kept(health: Health) -> None:
    made = plan(desired(CHAT), running(mark("chat", spec("m")), health, message="busy"))
    assert made.steps == ()
    assert words(made) == [("keep", "busy" if health is Health.UNKNOWN else "")]


# Order of the rules


def test_what_must_be_held_is_held_although_it_differs_and_is_to_stop() -> None:
    stopped = engine("chat", spec("other"), state=EngineState.STOPPED)
    assert plan(desired(stopped), launch_of(CHAT), gaps=(gap(),)).steps == ()


def test_live_and_route_changes_come_with_waking_and_waiting() -> None:
    edited = replace(CHAT, live=LiveSpec(drain=1.0))
    for health, verdict in ((Health.ASLEEP, Verdict.WAKE), (Health.STARTING, Verdict.UPDATE)):
        step = only_step(plan(desired(edited), launch_of(CHAT, health=health)))
        assert step.verdict is verdict
        assert {UpdateLive, AwaitReady} <= {type(action) for action in step.actions}


# What is no longer wanted, what was left over


def test_engines_and_replicas_that_left_the_file_are_stopped() -> None:
    two = engine("chat", spec("m"), replicas=2)
    launches = launch_of(two, 0), launch_of(two, 1, id="l2", port=8902)
    assert causes(plan(desired(CHAT), *launches)) == [("stop:chat#1:l2", "replicas is now 1")]
    made = plan(desired(), *launches)
    assert [cause for _, cause in causes(made)] == ["no longer in the stack file"] * 2


def test_leftovers_are_reaped_and_the_replica_starts_after_them() -> None:
    left = orphan(mark("chat", spec("m")), pids=(7, 8), held=75 * GIB)
    nodes = [node("n1", [replace(node().gpus[0], used_mib=75 * GIB)])]
    made = plan(desired(CHAT), nodes=nodes, orphans=(left,))
    reap, start = made.steps
    assert (reap.id, reap.cause) == ("reap:chat#0:l1", "2 processes left over: the supervisor is gone")
    assert reap.actions == (Reap(left),)
    assert start.after == (reap.id,)


def test_leftovers_and_launches_of_other_stacks_are_not_ours_to_end() -> None:
    theirs = running(mark("chat", stack="other", id="l7", port=8907))
    left = orphan(mark("chat", stack="other", id="l8"))
    assert plan(desired(), theirs, orphans=(left,)).steps == ()


def test_an_interrupted_rollout_keeps_the_old_one_until_the_new_one_answers() -> None:
    old = running(mark("chat", spec("old"), id="l0"), started=NOW - 9000)
    new = running(mark("chat", spec("m"), id="l1", port=8902), Health.STARTING, started=NOW - 30)
    await_, stop = plan(desired(CHAT), old, new).steps
    assert await_.id == "await:chat#0"
    assert (stop.id, stop.after) == ("stop:chat#0:l0", ("await:chat#0",))
    assert stop.cause == "superseded: left by an interrupted rollout"


@pytest.mark.parametrize(
    ("health", "policy"),
    [
        (Health.BACKOFF, Policy(hold=((CHAT_ID, "failed 2 times"),))),
        (Health.UNKNOWN, Policy()),
    ],
)
def test_the_old_one_stays_while_it_is_not_sure_that_the_new_one_serves(
    health: Health, policy: Policy
) -> None:
    old = running(mark("chat", spec("old"), id="l0"), started=NOW - 9000)
    new = running(mark("chat", spec("m"), id="l1", port=8902), health)
    assert plan(desired(CHAT), old, new, policy=policy).steps == ()


def test_a_finished_rollout_ends_the_old_one_at_once() -> None:
    old = running(mark("chat", spec("old"), id="l0"))
    stop = only_step(plan(desired(CHAT), old, running(mark("chat", spec("m"), port=8902))))
    assert (stop.id, stop.after) == ("stop:chat#0:l0", ())


# Dependencies, targets


def test_dependents_wait_for_the_steps_of_what_they_depend_on() -> None:
    stack = desired(engine("app", cpu_spec(), after=["base"]), engine("base", cpu_spec(), replicas=2))
    made = plan(stack)
    assert [step.id for step in made.steps] == ["start:base#0", "start:base#1", "start:app#0"]
    assert made.steps[-1].after == ("start:base#0", "start:base#1")


def test_dependents_of_what_is_blocked_are_blocked() -> None:
    stack = desired(
        engine("base", spec(need=99 * GIB)),
        engine("mid", cpu_spec(), after=["base"]),
        engine("top", cpu_spec(), after=["mid"]),
    )
    made = plan(stack)
    assert made.steps == ()
    assert [b.reason for b in made.blocked][1:] == [
        "depends on base, which is blocked",
        "depends on mid, which is blocked",
    ]


def test_dependents_of_what_is_held_are_held() -> None:
    stack = desired(engine("chat", cpu_spec()), engine("app", cpu_spec(), after=["chat"]))
    made = plan(stack, policy=Policy(hold=((CHAT_ID, "failed 2 times"),)))
    assert made.steps == ()
    assert words(made) == [("hold", "depends on chat, which is held"), ("hold", "failed 2 times")]


def test_targets_leave_everything_else_alone() -> None:
    gone = running(mark("gone", spec("m"), id="l5", port=8905))
    left = orphan(mark("left", spec("m"), id="l6"))
    stack = desired(engine("a", cpu_spec()), engine("b", cpu_spec()))
    made = plan(stack, gone, orphans=(left,), policy=Policy(targets=frozenset({"b"})))
    assert [step.id for step in made.steps] == ["start:b#0"]
    assert made.kept == ()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (8, "8 s"), (119, "119 s"), (130, "2 min"), (7300, "2 h"), (260_000, "3 d")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
