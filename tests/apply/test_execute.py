"""The executor on an in-memory fleet: order, parallelism, rollback, interruption."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sage_reconcile.apply.execute import Executor, Options
from sage_reconcile.model.actions import Outcome, Plan, Result, Verdict
from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState, Strategy
from sage_reconcile.model.observed import Health, ObservedNode
from sage_reconcile.plan.policy import Policy
from sage_reconcile.plan.reconcile import reconcile
from tests.build import GIB, cpu_spec, desired, engine, gpu, launch_of, mark, node, running, spec
from tests.fakes import FakeProgress, FakeRoutes, FakeWorld

OLD, NEW = "old", "new"


class Apply:
    """One apply of a stack to a world; keeps what it published and told."""

    def __init__(
        self,
        world: FakeWorld,
        stack: DesiredState,
        options: Options | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.world = world
        self.plan: Plan = reconcile(stack, world.seen(), policy or Policy())
        self.routes = FakeRoutes(world, stack)
        self.progress = FakeProgress()
        self.executor = Executor(world, self.routes, self.progress, options or Options())

    async def execute(self) -> tuple[Outcome, ...]:
        await self.routes.publish()
        outcomes = await self.executor.execute(self.plan)
        await self.routes.publish()
        return outcomes

    def run(self) -> dict[str, Outcome]:
        outcomes = asyncio.run(self.execute())
        assert outcomes == tuple(
            sorted(outcomes, key=lambda o: [s.id for s in self.plan.steps].index(o.step.id))
        )
        return {outcome.step.id: outcome for outcome in outcomes}

    async def interrupted_when(self, begun: Callable[[], bool]) -> tuple[Outcome, ...]:
        """Executes; cancels as soon as `begun`."""
        task = asyncio.create_task(self.execute())
        await until(begun)
        self.executor.cancel()
        return await asyncio.wait_for(task, 10)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0)


def results(outcomes: dict[str, Outcome]) -> dict[str, Result]:
    return {name: outcome.result for name, outcome in outcomes.items()}


def chat(model: str, need: int = 30 * GIB, **changes: object) -> DesiredEngine:
    return engine("chat", spec(model, need=need), **changes)  # type: ignore[arg-type]


def serving(old: DesiredEngine, nodes: list[ObservedNode] | None = None) -> FakeWorld:
    """A world in which the engine's old version serves."""
    world = FakeWorld(nodes or [node("n1", 1)])
    world.add(launch_of(old))
    return world


# Order


def test_independent_steps_run_at_once() -> None:
    world = FakeWorld([node("n1", 0)])
    gates = {name: asyncio.Event() for name in ("a", "b", "c")}
    world.script.loading = gates
    apply = Apply(world, desired(*(engine(name, cpu_spec()) for name in gates)))

    async def scenario() -> tuple[Outcome, ...]:
        task = asyncio.create_task(apply.execute())
        await until(lambda: sum(call.startswith("await") for call in world.calls) == 3)
        for gate in gates.values():
            gate.set()
        return await task

    assert [o.result for o in asyncio.run(scenario())] == [Result.DONE] * 3


def test_engines_that_share_a_gpu_start_one_after_another() -> None:
    world = FakeWorld([node("n1", 1)])
    stack = desired(*(engine(name, spec(need=10 * GIB)) for name in "abc"))
    assert set(results(Apply(world, stack).run()).values()) == {Result.DONE}
    assert world.violations == []
    order = [call.split()[:2] for call in world.calls if call.startswith(("launch", "await"))]
    assert order == [[word, f"{name}#0"] for name in "abc" for word in ("launch", "await")]


def test_one_that_fails_does_not_keep_its_neighbour_on_the_gpu_from_starting() -> None:
    world = FakeWorld([node("n1", 1)])
    world.script.dies_at_start = {"a"}
    stack = desired(*(engine(name, spec(need=10 * GIB)) for name in "ab"))
    outcomes = Apply(world, stack).run()
    assert results(outcomes) == {"start:a#0": Result.FAILED, "start:b#0": Result.DONE}


def test_dependents_start_after_what_they_depend_on() -> None:
    world = FakeWorld([node("n1", 0)])
    stack = desired(engine("app", cpu_spec(), after=["base"]), engine("base", cpu_spec()))
    Apply(world, stack).run()
    assert world.calls.index("await base#0") < world.calls.index("launch app#0 m")


def test_what_waits_for_a_failed_step_is_skipped_with_the_reason() -> None:
    world = FakeWorld([node("n1", 0)])
    world.script.never_ready = {"base"}
    stack = desired(
        engine("app", cpu_spec(), after=["mid"]),
        engine("mid", cpu_spec(), after=["base"]),
        engine("base", cpu_spec()),
        engine("alone", cpu_spec()),
    )
    outcomes = Apply(world, stack).run()
    assert outcomes["start:base#0"].reason == "not ready within 600 s: it has not answered yet"
    assert outcomes["start:base#0"].tail == ("loading",)
    assert outcomes["start:mid#0"].reason == "waits for start base#0, which failed"
    assert outcomes["start:app#0"].reason == "waits for start mid#0, which was not done"
    assert outcomes["start:alone#0"].result is Result.DONE
    assert world.engines() == {"alone#0": "m"}


def test_a_failed_start_leaves_nothing_running() -> None:
    world = FakeWorld([node("n1", 1)])
    world.script.never_ready = {"chat"}
    Apply(world, desired(chat(NEW))).run()
    assert world.processes == {}
    assert world.used(("n1", "GPU-n1-0")) == 0


def test_stopping_withdraws_and_drains_first() -> None:
    old = chat(OLD)
    world = serving(old)
    Apply(world, desired()).run()
    assert world.calls == ["withdraw l1", "drain l1", "stop l1"]


def test_a_stop_that_hangs_is_a_failure_and_touches_nothing_else() -> None:
    world = serving(chat(OLD))
    world.script.stop_hangs = {"chat"}
    outcomes = Apply(world, desired(engine("other", spec(need=5 * GIB)))).run()
    assert outcomes["stop:chat#0:l1"].result is Result.FAILED
    assert "not even by SIGKILL" in outcomes["stop:chat#0:l1"].reason
    assert outcomes["start:other#0"].result is Result.DONE


# Replacing


def test_surge_serves_without_a_gap() -> None:
    world = serving(chat(OLD))
    apply = Apply(world, desired(chat(NEW)))
    assert apply.plan.steps[0].strategy is Strategy.SURGE
    apply.run()
    assert world.engines() == {"chat#0": NEW}
    assert all(apply.routes.ready(table)["chat"] for table in apply.routes.tables)
    assert world.calls[-3:] == ["withdraw l1", "drain l1", "stop l1"]


def test_a_surge_that_fails_never_withdraws_the_old_one() -> None:
    world = serving(chat(OLD))
    world.script.broken_models = {NEW}
    apply = Apply(world, desired(chat(NEW)))
    outcome = apply.run()["replace:chat#0"]
    assert (outcome.result, outcome.rolled_back) == (Result.FAILED, True)
    assert outcome.reason == ("the engine ended before it answered: exit code 1; the old one goes on serving")
    assert outcome.tail == ("boom",)
    assert world.engines() == {"chat#0": OLD}
    assert apply.routes.withdrawn == set()
    assert all(apply.routes.ready(table)["chat"] == ["l1"] for table in apply.routes.tables)


def test_a_ready_replacement_is_kept_when_the_old_one_does_not_end() -> None:
    world = serving(chat(OLD))
    world.script.stop_hangs = {"chat"}
    outcome = Apply(world, desired(chat(NEW))).run()["replace:chat#0"]
    assert (outcome.result, outcome.rolled_back) == (Result.FAILED, False)
    assert outcome.reason.endswith("not even by SIGKILL; the new engine is ready and goes on")
    assert sorted(p.mark.spec.model for p in world.processes.values()) == [NEW, OLD]


def test_recreate_stops_before_it_starts() -> None:
    world = serving(chat(OLD, need=60 * GIB))
    Apply(world, desired(chat(NEW, need=60 * GIB))).run()
    assert world.calls == ["withdraw l1", "drain l1", "stop l1", "launch chat#0 new", "await chat#0"]
    assert world.violations == []


def test_a_recreate_that_fails_starts_the_old_one_again() -> None:
    world = serving(chat(OLD, need=60 * GIB))
    world.script.broken_models = {NEW}
    apply = Apply(world, desired(chat(NEW, need=60 * GIB)))
    outcome = apply.run()["replace:chat#0"]
    assert (outcome.result, outcome.rolled_back) == (Result.FAILED, True)
    assert outcome.reason.endswith("exit code 1; rolled back to what ran before")
    assert world.engines() == {"chat#0": OLD}
    (process,) = world.processes.values()
    assert process.mark.placement == mark("chat").placement
    assert apply.routes.ready()["chat"] == [process.mark.launch]


def test_no_rollback_leaves_it_stopped() -> None:
    world = serving(chat(OLD, need=60 * GIB))
    world.script.broken_models = {NEW}
    apply = Apply(world, desired(chat(NEW, need=60 * GIB)), Options(rollback=False))
    outcome = apply.run()["replace:chat#0"]
    assert (outcome.rolled_back, world.processes) == (False, {})
    assert outcome.reason.endswith("the old one was stopped and --no-rollback was given")


def test_a_rollback_that_fails_too_says_so() -> None:
    world = serving(chat(OLD, need=60 * GIB))
    world.script.broken_models = {NEW, OLD}
    outcome = Apply(world, desired(chat(NEW, need=60 * GIB))).run()["replace:chat#0"]
    assert not outcome.rolled_back
    assert "rolling back failed too: the engine ended before it answered" in outcome.reason
    assert world.processes == {}


def test_an_old_one_that_does_not_end_is_not_started_again() -> None:
    world = serving(chat(OLD, need=60 * GIB))
    world.script.stop_hangs = {"chat"}
    outcome = Apply(world, desired(chat(NEW, need=60 * GIB))).run()["replace:chat#0"]
    assert outcome.reason.endswith("the old one is half stopped; apply again")
    assert not any(call.startswith("launch") for call in world.calls)


def test_a_failed_replacement_stops_the_roll() -> None:
    old = engine("chat", spec(OLD, need=10 * GIB), replicas=3)
    world = FakeWorld([node("n1", 1)])
    for number in range(3):
        world.add(launch_of(old, number, id=f"l{number}", port=8901 + number))
    world.script.broken_models = {NEW}
    outcomes = Apply(world, desired(engine("chat", spec(NEW, need=10 * GIB), replicas=3))).run()
    assert [o.result for o in outcomes.values()] == [Result.FAILED, Result.SKIPPED, Result.SKIPPED]
    assert world.engines() == {f"chat#{n}": OLD for n in range(3)}


def test_replicas_are_replaced_one_at_a_time() -> None:
    old = engine("chat", spec(OLD, need=60 * GIB), replicas=2)
    world = FakeWorld([node("n1", 2)])
    for number in range(2):
        world.add(launch_of(old, number, id=f"l{number}", port=8901 + number, gpus=(number,)))
    apply = Apply(world, desired(engine("chat", spec(NEW, need=60 * GIB), replicas=2)))
    apply.run()
    assert world.engines() == {"chat#0": NEW, "chat#1": NEW}
    assert all(apply.routes.ready(table)["chat"] for table in apply.routes.tables)


# Interruption and waiting


def test_an_interrupted_start_goes_on_loading_and_nothing_new_begins() -> None:
    world = FakeWorld([node("n1", 0)])
    world.script.loading = {"base": asyncio.Event()}
    stack = desired(engine("app", cpu_spec(), after=["base"]), engine("base", cpu_spec()))
    apply = Apply(world, stack)
    outcomes = asyncio.run(apply.interrupted_when(lambda: "await base#0" in world.calls))
    assert [(o.result, o.reason) for o in outcomes] == [
        (Result.SKIPPED, "interrupted; the engine goes on loading"),
        (Result.SKIPPED, "waits for start base#0, which was not done"),
    ]
    assert [p.health for p in world.processes.values()] == [Health.STARTING]


def test_interrupted_before_it_began() -> None:
    world = FakeWorld([node("n1", 0)])
    apply = Apply(world, desired(engine("a", cpu_spec())))
    apply.executor.cancel()
    outcomes = apply.run()
    assert outcomes["start:a#0"].reason == "interrupted before it began"
    assert world.calls == []


@pytest.mark.parametrize("need", [30 * GIB, 60 * GIB], ids=["surge", "recreate"])
def test_an_interrupted_replacement_is_brought_to_its_end(need: int) -> None:
    world = serving(chat(OLD, need=need))
    gate = asyncio.Event()
    world.script.loading = {"chat": gate}
    apply = Apply(world, desired(chat(NEW, need=need)))

    async def scenario() -> tuple[Outcome, ...]:
        begun: Callable[[], bool] = lambda: "await chat#0" in world.calls  # noqa: E731
        task: Awaitable[tuple[Outcome, ...]] = asyncio.create_task(apply.interrupted_when(begun))
        await until(lambda: apply.executor._cancelled.is_set())
        gate.set()
        return await task

    assert [o.result for o in asyncio.run(scenario())] == [Result.DONE]
    assert world.engines() == {"chat#0": NEW}


def test_no_wait_leaves_engines_loading() -> None:
    world = FakeWorld([node("n1", 0)])
    outcomes = Apply(world, desired(engine("a", cpu_spec())), Options(wait=False)).run()
    assert results(outcomes) == {"start:a#0": Result.DONE}
    assert [p.health for p in world.processes.values()] == [Health.STARTING]


def test_no_wait_still_waits_for_a_replacement() -> None:
    world = serving(chat(OLD))
    Apply(world, desired(chat(NEW)), Options(wait=False)).run()
    assert world.engines() == {"chat#0": NEW}


def test_the_timeout_of_the_command_line_goes_first() -> None:
    world = FakeWorld([node("n1", 0)])
    world.script.never_ready = {"a"}
    outcomes = Apply(world, desired(engine("a", cpu_spec())), Options(timeout=7.0)).run()
    assert outcomes["start:a#0"].reason.startswith("not ready within 7 s")


# Sleeping


def sleeper(state: EngineState, **changes: object) -> DesiredEngine:
    launch = spec("m", need=0.5, runtime="vllm", can_sleep=True)
    return engine("chat", launch, state=state, **changes)  # type: ignore[arg-type]


def test_an_engine_that_is_to_sleep_is_started_and_put_to_sleep_in_one_apply() -> None:
    world = FakeWorld([node("n1", 1)])
    stack = desired(sleeper(EngineState.ASLEEP))
    apply = Apply(world, stack)
    apply.run()
    assert [p.health for p in world.processes.values()] == [Health.ASLEEP]
    assert reconcile(stack, world.seen()).steps == ()
    assert not any(apply.routes.ready(table)["chat"] for table in apply.routes.tables)


def test_one_that_was_not_waited_for_is_not_put_to_sleep() -> None:
    world = FakeWorld([node("n1", 1)])
    Apply(world, desired(sleeper(EngineState.ASLEEP)), Options(wait=False)).run()
    assert world.calls == ["launch chat#0 m"]


def test_to_sleep_and_awake_again() -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(launch_of(sleeper(EngineState.RUNNING)))
    Apply(world, desired(sleeper(EngineState.ASLEEP))).run()
    assert world.calls == ["withdraw l1", "drain l1", "sleep l1"]
    apply = Apply(world, desired(sleeper(EngineState.RUNNING)))
    apply.run()
    assert world.calls[3:] == ["wake l1", "await chat#0", "admit l1"]
    assert apply.routes.ready()["chat"] == ["l1"]


def test_waking_waits_for_the_memory_that_another_leaves() -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(launch_of(sleeper(EngineState.RUNNING), health=Health.ASLEEP))
    world.add(running(mark("guest", spec(need=60 * GIB), id="l2", port=8902)))
    Apply(world, desired(sleeper(EngineState.RUNNING))).run()
    assert world.calls.index("stop l2") < world.calls.index("wake l1")
    assert world.violations == []


def test_no_room_to_wake_is_a_blocked_step_with_the_arithmetic() -> None:
    world = FakeWorld([node("n1", [gpu(0, 80 * GIB)])])
    world.add(launch_of(sleeper(EngineState.RUNNING), health=Health.ASLEEP))
    guest = engine("guest", spec(need=60 * GIB))
    world.add(launch_of(guest, id="l2", port=8902))
    plan = Apply(world, desired(sleeper(EngineState.RUNNING), guest)).plan
    assert plan.steps == ()
    assert [b.reason for b in plan.blocked] == [
        "no room to wake up: needs 41,678 MiB more on n1 GPU 0: 19,968 of 81,920 MiB free"
    ]


# Replaced while the old one sleeps


def swapping(model: str, strategy: Strategy = Strategy.AUTO) -> DesiredEngine:
    """Two of these do not fit on one GPU, a sleeping and a waking one do."""
    launch = spec(model, need=0.7, runtime="vllm", can_sleep=True)
    return engine("chat", launch, strategy=strategy)


def test_the_old_one_sleeps_until_the_new_one_answers() -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(launch_of(swapping(OLD)))
    apply = Apply(world, desired(swapping(NEW)))
    (step,) = apply.plan.steps
    assert (step.strategy, step.placement and step.placement.port) == (Strategy.SLEEP_SWAP, 8902)
    assert step.reason.endswith("the old one sleeps until it is there")
    apply.run()
    assert world.calls == [
        "withdraw l1",
        "drain l1",
        "sleep l1",
        f"launch chat#0 {NEW}",
        "await chat#0",
        "stop l1",
    ]
    assert world.engines() == {"chat#0": NEW}
    assert world.violations == []
    assert reconcile(desired(swapping(NEW)), world.seen()).steps == ()


def test_a_swap_that_fails_wakes_the_old_one() -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(launch_of(swapping(OLD)))
    world.script.broken_models = {NEW}
    apply = Apply(world, desired(swapping(NEW)))
    outcome = apply.run()["replace:chat#0"]
    assert (outcome.result, outcome.rolled_back) == (Result.FAILED, True)
    assert outcome.reason.endswith("the old one was woken and serves again")
    assert "wake l1" in world.calls
    assert not [call for call in world.calls if call == "stop l1"]
    assert world.engines() == {"chat#0": OLD}


def test_one_that_keeps_its_memory_is_stopped_instead() -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(launch_of(swapping(OLD)))
    world.script.sleepless = {"chat"}
    Apply(world, desired(swapping(NEW))).run()
    assert world.calls[2:5] == ["sleep l1", "stop l1", f"launch chat#0 {NEW}"]
    assert world.calls.count("stop l1") == 1
    assert world.engines() == {"chat#0": NEW}
    assert world.violations == []


def test_one_that_does_not_wake_is_started_again() -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(launch_of(swapping(OLD)))
    world.script.broken_models, world.script.does_not_wake = {NEW}, {"chat"}
    outcome = Apply(world, desired(swapping(NEW))).run()["replace:chat#0"]
    assert outcome.rolled_back
    assert "the old one did not wake" in outcome.reason
    assert "rolled back to what ran before" in outcome.reason
    assert world.engines() == {"chat#0": OLD}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": Strategy.RECREATE}, "rollout.strategy is recreate"),
        ({"strategy": Strategy.SLEEP_SWAP, "port": 8901}, "sleep-swap is not possible: port 8901 is fixed"),
        ({"port": 8901}, "port 8901 is fixed by the file"),
    ],
)
def test_where_the_two_cannot_be_there_together(changes: dict[str, object], reason: str) -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(launch_of(swapping(OLD)))
    launch = swapping(NEW).launch
    (step,) = Apply(world, desired(engine("chat", launch, **changes))).plan.steps  # type: ignore[arg-type]
    assert step.strategy is Strategy.RECREATE
    assert step.reason.startswith(reason)


def test_the_file_may_ask_for_it_though_both_would_fit() -> None:
    world = FakeWorld([node("n1", 2)])
    world.add(launch_of(swapping(OLD, Strategy.SLEEP_SWAP)))
    (step,) = Apply(world, desired(swapping(NEW, Strategy.SLEEP_SWAP))).plan.steps
    assert step.strategy is Strategy.SLEEP_SWAP


# Leftovers, live settings, reporting


def test_progress_is_told_of_every_step() -> None:
    world = serving(chat(OLD))
    apply = Apply(world, desired(chat(NEW)))
    apply.run()
    assert apply.progress.events == [
        "started replace:chat#0",
        "replace:chat#0: starting",
        "replace:chat#0: waiting until it answers",
        "replace:chat#0: draining",
        "replace:chat#0: stopping",
        "ended replace:chat#0: done",
    ]


def test_an_exited_launch_is_ended_before_its_replica_starts_again() -> None:
    world = FakeWorld([node("n1", 1)])
    world.add(launch_of(chat(OLD), health=Health.EXITED))
    apply = Apply(world, desired(chat(OLD)))
    assert [step.verdict for step in apply.plan.steps] == [Verdict.START]
    apply.run()
    assert world.calls == ["stop l1", "launch chat#0 old", "await chat#0"]
