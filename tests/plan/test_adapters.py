"""LoRA adapters in plans: what needs a new process, what only the running one, and what is repaired."""

import asyncio
from dataclasses import replace
from typing import Any

from sage_reconcile.adopted import as_desired
from sage_reconcile.model.actions import Plan, Result, Verdict
from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState, Strategy
from sage_reconcile.model.observed import Health
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.resolve import resolve
from sage_reconcile.stack.schema import Stack
from tests.build import node
from tests.fakes import FakeRoutes, FakeWorld, apply

SQL, LEGAL = (
    {"name": "sql", "path": "/lora/sql", "rank": 16},
    {"name": "legal", "path": "/lora/legal", "rank": 8},
)
WIDE = {"name": "wide", "path": "/lora/wide", "rank": 100}


def stack(*lora: dict[str, Any], **fields: Any) -> DesiredState:
    """One vllm engine with these adapters."""
    engine = {"name": "chat", "model": "m", "gpu_memory": 0.4, "lora": list(lora)} | fields
    model = Stack.model_validate({"engines": [engine]})
    return resolve(StackFile("demo", {}, None, (), model))  # type: ignore[arg-type]


def chat(desired: DesiredState) -> DesiredEngine:
    return desired.engines[0]


def run(world: FakeWorld, desired: DesiredState) -> Plan:
    """One pass, which must go well."""
    plan, outcomes = asyncio.run(apply(world, desired))
    assert [outcome.reason for outcome in outcomes if outcome.result is not Result.DONE] == []
    assert world.violations == []
    return plan


def serving(*lora: dict[str, Any], **fields: Any) -> FakeWorld:
    """A world in which this stack has been applied."""
    world = FakeWorld([node()])
    run(world, stack(*lora, **fields))
    return world


def only(world: FakeWorld) -> tuple[int, dict[str, str]]:
    """The supervisor and the adapters of the one process."""
    (process,) = world.processes.values()
    return process.pid, process.adapters


def routed(world: FakeWorld, desired: DesiredState) -> dict[str, list[str]]:
    assert world.routing is not None
    return FakeRoutes(world, desired).ready(world.routing)


def causes(world: FakeWorld, desired: DesiredState) -> list[str]:
    return [f"{step.verdict}: {step.cause}" for step in reconcile(desired, world.seen()).steps]


def test_a_new_engine_has_its_adapters_before_it_is_routed_to() -> None:
    desired = stack(SQL, LEGAL)
    world = serving(SQL, LEGAL)
    assert only(world)[1] == {"sql": "/lora/sql", "legal": "/lora/legal"}
    assert routed(world, desired) == {name: ["new1"] for name in ("chat", "m", "sql", "legal")}
    assert {r.name: r.model for r in world.routing.routes if r.model} == {"sql": "sql", "legal": "legal"}  # type: ignore[union-attr]
    assert reconcile(desired, world.seen()).steps == ()


def test_adapters_come_go_and_move_in_the_running_process() -> None:
    world = serving(SQL)
    pid, _ = only(world)
    moved = {**SQL, "path": "/lora/sql-2"}
    assert causes(world, stack(moved, LEGAL)) == [
        "update: adapters: legal: (none) -> /lora/legal; sql: /lora/sql -> /lora/sql-2"
    ]
    run(world, stack(moved, LEGAL))
    assert only(world) == (pid, {"sql": "/lora/sql-2", "legal": "/lora/legal"})
    run(world, stack())
    assert only(world) == (pid, {})
    assert reconcile(stack(), world.seen()).steps == ()


def test_the_first_adapter_of_an_engine_without_lora_needs_a_new_process() -> None:
    world = serving(lora=None)
    (step,) = reconcile(stack(SQL), world.seen()).steps
    assert step.verdict is Verdict.REPLACE
    assert "args.enable-lora: (none) -> true" in step.changes
    run(world, stack(SQL))
    assert only(world)[1] == {"sql": "/lora/sql"}


def test_a_rank_beyond_what_the_process_takes_needs_a_new_one_and_a_lower_one_does_not() -> None:
    world = serving(SQL)
    assert causes(world, stack(SQL, WIDE)) == ["replace: args.max-lora-rank: 16 -> 128"]
    run(world, stack(SQL, WIDE))
    pid, _ = only(world)
    assert causes(world, stack(SQL)) == ["update: adapters: wide: /lora/wide -> (none)"]
    run(world, stack(SQL))
    assert only(world) == (pid, {"sql": "/lora/sql"})
    assert reconcile(stack(SQL), world.seen()).steps == ()


def test_more_adapters_than_slots_take_turns_in_the_running_process() -> None:
    world = serving(SQL)
    pid, _ = only(world)
    many = [{"name": f"a{n}", "path": f"/lora/{n}", "rank": 8} for n in range(9)]
    run(world, stack(*many))
    assert only(world)[0] == pid
    assert len(only(world)[1]) == 9
    assert dict(chat(stack(*many)).launch.args)["max-loras"] == 9


def test_sizes_that_the_file_gives_are_arguments_like_any_other() -> None:
    world = serving(SQL, args={"max-lora-rank": 64, "max-loras": 2})
    assert causes(world, stack(SQL, args={"max-lora-rank": 32, "max-loras": 2})) == [
        "replace: args.max-lora-rank: 64 -> 32"
    ]


def test_an_adapter_that_is_lost_is_held_and_loaded_again() -> None:
    desired, world = stack(SQL), serving(SQL)
    only(world)[1].clear()
    assert causes(world, desired) == ["update: adapters: sql: no longer loaded -> /lora/sql"]
    routes = FakeRoutes(world, desired)
    asyncio.run(routes.publish())
    assert routes.ready() == {"chat": ["new1"], "m": ["new1"], "sql": []}
    run(world, desired)
    assert only(world)[1] == {"sql": "/lora/sql"}


def test_an_adapter_that_is_not_in_the_file_is_unloaded() -> None:
    desired, world = stack(SQL), serving(SQL)
    only(world)[1]["by-hand"] = "/tmp/x"
    assert causes(world, desired) == ["update: adapters: by-hand: /tmp/x -> (none)"]


def test_one_that_cannot_be_loaded_fails_its_step_and_keeps_nothing_else_from_serving() -> None:
    desired, world = stack(SQL, LEGAL), FakeWorld([node()])
    world.script.broken_adapters.add("/lora/legal")
    _, (outcome,) = asyncio.run(apply(world, desired))
    assert outcome.result is Result.FAILED
    assert "did not load LoRA adapter legal" in outcome.reason
    assert only(world)[1] == {"sql": "/lora/sql"}
    assert routed(world, desired) == {"chat": ["new1"], "m": ["new1"], "sql": ["new1"], "legal": []}


def test_a_replacement_that_cannot_load_its_adapters_is_taken_back() -> None:
    world = serving(SQL)
    pid, _ = only(world)
    world.script.broken_adapters.add("/lora/sql")
    desired = stack(SQL, args={"max-model-len": 4096}, rollout={"strategy": Strategy.SURGE.value})
    _, (outcome,) = asyncio.run(apply(world, desired))
    assert outcome.result is Result.FAILED
    assert "goes on serving" in outcome.reason
    assert only(world) == (pid, {"sql": "/lora/sql"})
    assert routed(world, desired)["sql"] == ["new1"]


def test_what_is_rolled_back_by_a_start_has_its_adapters_again() -> None:
    world = serving(SQL)
    world.script.broken_models.add("broken")
    desired = stack(SQL, model="broken", rollout={"strategy": "recreate"})
    _, (outcome,) = asyncio.run(apply(world, desired))
    assert outcome.rolled_back
    assert only(world)[1] == {"sql": "/lora/sql"}


def test_an_engine_that_sleeps_is_asked_for_nothing_and_gets_what_it_lacks_when_it_wakes() -> None:
    desired = stack(SQL, state="asleep")
    world = serving(SQL, state="asleep")
    (process,) = world.processes.values()
    assert process.health is Health.ASLEEP
    assert process.adapters == {}
    assert reconcile(desired, world.seen()).steps == ()
    awake = DesiredState("demo", (replace(chat(desired), state=EngineState.RUNNING),))
    run(world, awake)
    assert process.adapters == {"sql": "/lora/sql"}


def test_what_does_not_say_which_adapters_it_has_keeps_its_routes() -> None:
    desired, world = stack(SQL), serving(SQL)
    seen = world.seen()
    silent = replace(seen, launches=tuple(replace(one, adapters=None) for one in seen.launches))
    assert reconcile(desired, silent).steps == ()
    routes = FakeRoutes(world, desired)
    routes._observed = silent
    routes._write()
    assert routes.ready()["sql"] == ["new1"]


def test_adapters_of_the_engines_own_flags_are_left_alone() -> None:
    desired = stack(lora=None, args={"enable-lora": True, "lora-modules": "own=/lora/own"})
    world = FakeWorld([node()])
    run(world, desired)
    only(world)[1]["own"] = "/lora/own"
    assert reconcile(desired, world.seen()).steps == ()
    assert "own" not in routed(world, desired)
    assert as_desired("demo", world.seen()).engines[0].lora is None


def test_a_restart_without_the_file_loads_what_was_published() -> None:
    world = serving(SQL)
    assert as_desired("demo", world.seen()).engines[0].lora == (Adapter("sql", "/lora/sql"),)


def test_adapters_are_values() -> None:
    assert chat(stack(SQL, LEGAL)).lora == (Adapter("legal", "/lora/legal"), Adapter("sql", "/lora/sql"))
