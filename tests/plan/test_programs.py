"""A version that the file pins and that is not installed: blocked, with the command; what runs goes on."""

from sage_reconcile.model.desired import DesiredEngine, Program
from sage_reconcile.plan.reconcile import reconcile
from tests.build import cpu_spec, desired, engine, launch_of, observed

OLD, NEW = Program("0.23.0"), Program("0.24.0")


def pinned(program: Program) -> DesiredEngine:
    return engine("chat", cpu_spec("m", runtime="vllm", program=program))


def test_a_start_is_blocked_until_it_is_installed() -> None:
    plan = reconcile(desired(pinned(NEW)), observed(programs=()))
    assert plan.steps == ()
    assert [b.reason for b in plan.blocked] == [
        "vllm 0.24.0 is not installed: run `sage runtime install vllm`"
    ]
    there = observed(programs=(NEW.folder("vllm"),))
    assert [step.id for step in reconcile(desired(pinned(NEW)), there).steps] == ["start:chat#0"]


def test_an_upgrade_is_blocked_and_the_old_one_goes_on() -> None:
    running = launch_of(pinned(OLD))
    plan = reconcile(desired(pinned(NEW)), observed(running, programs=(OLD.folder("vllm"),)))
    assert plan.steps == ()
    assert len(plan.blocked) == 1
    folders = (OLD.folder("vllm"), NEW.folder("vllm"))
    [step] = reconcile(desired(pinned(NEW)), observed(running, programs=folders)).steps
    assert step.changes == ("program.version: 0.23.0 -> 0.24.0",)


def test_where_nobody_looked_nothing_is_blocked() -> None:
    assert reconcile(desired(pinned(NEW)), observed(programs=None)).blocked == ()


def test_what_runs_needs_no_installation() -> None:
    running = launch_of(pinned(OLD))
    plan = reconcile(desired(pinned(OLD)), observed(running, programs=()))
    assert (plan.steps, plan.blocked) == ((), ())
