"""What a plan relies on: the facts it was made on, and which of them are no longer so."""

from sage_reconcile.model.actions import AwaitReady, Plan, Reap, Step, Verdict
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.plan.memory import Ledger

FOREIGN_STEP_MIB = 1024
"""Memory of others moves all the time; a change of less than this does not make a plan void."""

Facts = dict[str, dict[str, str | int]]


def facts(observed: ObservedState) -> Facts:
    """The facts as plain data, for a plan file."""
    ledger = Ledger(observed)
    return {
        "boot": {node.name: node.boot_id for node in observed.nodes},
        "launches": {
            launch.mark.id: f"{launch.supervisor_pid} since {launch.supervisor_started:.0f}"
            for launch in observed.launches
        },
        "leftovers": {orphan.mark.id: len(orphan.pids) for orphan in observed.orphans},
        "gpus": {f"{gpu.node}/{gpu.uuid}": gpu.total_mib for gpu in observed.gpus},
        "foreign": {f"{a.gpu.node}/{a.gpu.uuid}": a.foreign for a in ledger.accounts.values()},
    }


_WORDS = {"boot": "boot of", "launches": "launch", "leftovers": "leftovers of", "gpus": "GPU"}


def changed(then: Facts, now: Facts) -> tuple[str, ...]:
    """Every fact that is no longer so, in words, sorted."""
    found = []
    for kind, word in _WORDS.items():
        before, after = then.get(kind, {}), now.get(kind, {})
        for name in before.keys() | after.keys():
            if name not in after:
                found.append(f"{word} {name} is gone")
            elif name not in before:
                found.append(f"{word} {name} is new")
            elif before[name] != after[name]:
                found.append(f"{word} {name} changed: {before[name]} -> {after[name]}")
    before, after = then.get("foreign", {}), now.get("foreign", {})
    for name in before.keys() & after.keys():
        if abs(int(before[name]) - int(after[name])) >= FOREIGN_STEP_MIB:
            found.append(f"memory of others on GPU {name} changed: {before[name]} -> {after[name]} MiB")
    return tuple(sorted(found))


def is_still(plan: Plan, then: Plan) -> bool:
    """Whether a plan does what an earlier one would have done, to the same processes.

    Causes tell how long something has been so, and an engine that was waited for may have become ready: that
    makes no other plan.
    """
    return _essence(plan) == _essence(then)


def _essence(plan: Plan) -> tuple[list[object], list[object]]:
    steps = [step for step in plan.steps if step.verdict is not Verdict.AWAIT]
    essence = [(s.id, s.verdict, s.strategy, s.placement, s.changes, _touched(s)) for s in steps]
    return list(essence), [blocked.replica for blocked in plan.blocked]


def _touched(step: Step) -> list[str]:
    """The launches that the step acts on."""
    actions = [action for action in step.actions if not isinstance(action, AwaitReady)]
    launches = [launch.mark.id for action in actions if (launch := getattr(action, "launch", None))]
    return launches + [action.orphan.mark.id for action in actions if isinstance(action, Reap)]
