"""Leased GPUs in plans: engines move, sleep or end, nothing starts there, and all is back afterwards."""

import asyncio
from dataclasses import replace

from sage_reconcile.model.actions import Plan, Result
from sage_reconcile.model.desired import DesiredEngine, DesiredState
from sage_reconcile.model.observed import Health, Lease, ObservedState
from sage_reconcile.plan.reconcile import reconcile
from tests.build import GIB, NOW, cpu_spec, desired, engine, gpu, launch_of, node, observed, spec, uuid_of
from tests.fakes import FakeWorld, apply

LEASE = Lease(uuid_of(0), NOW + 1000, "18:30", "alice", "fine-tuning")
CAUSE = "its GPU is leased to alice until 18:30: fine-tuning"


class LeasedWorld(FakeWorld):
    """A world with one lease, until its clock has passed the end of that."""

    lease = LEASE

    def seen(self) -> ObservedState:
        return replace(super().seen(), leases=(self.lease,))


def served(wanted: DesiredState, gpus: int = 1, lease: Lease = LEASE) -> LeasedWorld:
    """A world in which the stack runs already when the lease is given."""
    world = LeasedWorld([node(gpus=[gpu(index) for index in range(gpus)])])
    world.lease = replace(lease, until=0.0)
    pass_over(world, wanted)
    world.lease = lease
    return world


def pass_over(world: FakeWorld, wanted: DesiredState) -> Plan:
    plan, outcomes = asyncio.run(apply(world, wanted))
    assert [outcome.reason for outcome in outcomes if outcome.result is not Result.DONE] == []
    assert world.violations == []
    return plan


def told(plan: Plan) -> list[str]:
    return [f"{s.verdict} {s.replica.short}: {s.cause}" for s in plan.steps] + [
        f"{kept.verdict} {kept.replica.short}: {kept.reason}" for kept in plan.kept
    ]


def sleeper(name: str = "chat") -> DesiredEngine:
    return engine(name, spec(runtime="vllm", need=60 * GIB, can_sleep=True))


def test_an_engine_without_another_place_ends_and_waits_and_comes_back() -> None:
    wanted = desired(engine(), engine("cpu", cpu_spec()))
    world = served(wanted)
    assert told(pass_over(world, wanted)) == [f"stop chat#0: {CAUSE}", "keep cpu#0: "]
    waiting = reconcile(wanted, world.seen())
    assert waiting.steps == ()
    assert waiting.blocked == ()
    assert told(waiting)[0].startswith("hold chat#0: waits for a GPU: needs 10,240 MiB on 1 GPU; ")
    assert told(waiting)[0].endswith("n1 GPU 0: leased to alice until 18:30: fine-tuning")
    world.at = LEASE.until
    assert told(pass_over(world, wanted))[0].startswith("start chat#0: not running")
    assert reconcile(wanted, world.seen()).steps == ()


def test_one_with_room_elsewhere_moves_there_and_stays() -> None:
    wanted = desired(engine())
    world = served(wanted, gpus=2)
    (step,) = pass_over(world, wanted).steps
    assert (step.cause, step.strategy) == (CAUSE, "surge")
    (process,) = world.processes.values()
    assert process.mark.placement.gpus == (uuid_of(1),)
    assert reconcile(wanted, world.seen()).steps == ()
    world.at = LEASE.until
    assert reconcile(wanted, world.seen()).steps == ()


def test_one_that_is_pinned_there_ends() -> None:
    wanted = desired(engine(gpus=(0,)))
    world = served(wanted, gpus=2)
    assert told(pass_over(world, wanted)) == [f"stop chat#0: {CAUSE}"]
    assert [kept.verdict for kept in reconcile(wanted, world.seen()).kept] == ["hold"]


def test_one_that_may_sleep_sleeps_and_wakes() -> None:
    wanted = desired(sleeper(), engine("other"))
    world = served(wanted, lease=replace(LEASE, may_sleep=True))
    assert told(pass_over(world, wanted)) == [f"stop other#0: {CAUSE}", f"sleep chat#0: {CAUSE}"]
    waiting = reconcile(wanted, world.seen())
    assert waiting.steps == ()
    assert told(waiting)[0] == f"hold chat#0: asleep: {CAUSE}"
    world.at = LEASE.until
    assert {s.split(":")[0] for s in told(pass_over(world, wanted))} == {"wake chat#0", "start other#0"}


def test_without_asleep_what_sleeps_ends_too() -> None:
    wanted = desired(sleeper())
    asleep = launch_of(wanted.engines[0], health=Health.ASLEEP, gpus=(uuid_of(0),))
    plan = reconcile(wanted, observed(asleep, leases=(LEASE,)))
    assert told(plan) == [f"stop chat#0: {CAUSE}"]


def test_nothing_new_starts_on_it_be_its_need_known_or_not() -> None:
    host = [node(gpus=[gpu(0), gpu(1)])]
    for need in (10 * GIB, "auto"):
        (step,) = reconcile(
            desired(engine(launch=spec(need=need))), observed(nodes=host, leases=(LEASE,))
        ).steps
        assert step.placement is not None
        assert step.placement.gpus == (uuid_of(1),)
    both = desired(engine(launch=spec(tp=2)))
    plan = reconcile(both, observed(nodes=host, leases=(LEASE,)))
    assert plan.steps == ()
    assert [kept.verdict for kept in plan.kept] == ["hold"]


def test_a_lease_that_is_over_is_none() -> None:
    wanted = desired(engine())
    over = replace(LEASE, until=NOW)
    assert [s.verdict for s in reconcile(wanted, observed(leases=(over,))).steps] == ["start"]


def test_the_leases_of_other_gpus_are_no_excuse_for_what_has_no_room() -> None:
    """It is told apart by the arithmetic, which names both."""
    wanted = desired(engine(launch=spec(need=500 * GIB)))
    (kept,) = reconcile(wanted, observed(nodes=[node(gpus=[gpu(0), gpu(1)])], leases=(LEASE,))).kept
    assert "needs 512,000 MiB" in kept.reason
    assert "leased to alice" in kept.reason
