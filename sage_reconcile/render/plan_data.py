"""A plan as JSON and as Markdown: for machines and for merge requests."""

from dataclasses import asdict
from typing import Any

from sage_reconcile.model.actions import (
    AwaitReady,
    Blocked,
    Launch,
    Plan,
    Reap,
    Sleep,
    Step,
    Stop,
    UpdateLive,
    Verdict,
    Wake,
)
from sage_reconcile.model.desired import LaunchSpec
from sage_reconcile.render.plan_text import (
    changing_gpus,
    expected_words,
    headline,
    remedy_words,
    shown_steps,
    step_words,
    where,
)

SUMMARY = ("start", "replace", "update", "stop", "sleep", "wake", "adopt", "reap")


def plan_data(plan: Plan) -> dict[str, Any]:
    """The shape that `sage plan --format json` promises."""
    verdicts = [str(step.verdict) for step in plan.steps]
    summary = {name: verdicts.count(name) for name in SUMMARY}
    summary["keep"] = sum(kept.verdict is Verdict.KEEP for kept in plan.kept) + verdicts.count("await")
    summary["blocked"] = len(plan.blocked)
    held = [kept for kept in plan.kept if kept.verdict is Verdict.HOLD]
    return {
        "version": 1,
        "stack": plan.stack,
        "summary": summary,
        "steps": [_step(step) for step in plan.steps],
        "blocked": [_blocked(blocked) for blocked in plan.blocked],
        "held": [
            {"engine": k.replica.engine, "replica": k.replica.replica, "reason": k.reason} for k in held
        ],
        "gaps": [{"node": gap.node, "what": gap.what, "reason": gap.reason} for gap in plan.gaps],
        "notes": list(plan.notes),
        "memory": [
            {
                "node": gpu.node,
                "gpu": gpu.index,
                "uuid": gpu.uuid,
                "total_mib": gpu.total_mib,
                "before_mib": gpu.before_mib,
                "peak_mib": gpu.peak_mib,
                "after_mib": gpu.after_mib,
                "steps": [asdict(step) for step in gpu.steps],
            }
            for gpu in plan.memory
        ],
    }


def _blocked(blocked: Blocked) -> dict[str, Any]:
    replica = blocked.replica
    data: dict[str, Any] = {"engine": replica.engine, "replica": replica.replica, "reason": blocked.reason}
    if blocked.remedies:
        data["remedies"] = [{"set": one.edit, "does": one.said} for one in blocked.remedies]
    return data


def _step(step: Step) -> dict[str, Any]:
    place = step.placement
    data: dict[str, Any] = {
        "id": step.id,
        "action": str(step.verdict),
        "engine": step.replica.engine,
        "replica": step.replica.replica,
        "cause": step.cause,
        "after": list(step.after),
    }
    if step.behind:
        data["behind"] = list(step.behind)
    if step.changes:
        data["changes"] = list(step.changes)
    if step.strategy is not None:
        data |= {"strategy": str(step.strategy), "reason": step.reason}
    if step.expected is not None:
        names = ("outage", "work", "refused")
        data["expected"] = {f"{name}_seconds": getattr(step.expected, name) for name in names}
    if place is not None:
        data["placement"] = {"node": place.node, "gpus": list(place.gpus), "port": place.port}
    if step.notes:
        data["notes"] = list(step.notes)
    return data


def plan_markdown(plan: Plan) -> str:
    """A comment for a merge request."""
    lines = [f"### sage plan: stack `{plan.stack}`", "", f"**{headline(plan)}**", ""]
    if plan.steps or plan.blocked:
        lines += ["| action | engine | model | runtime | cause | where |"]
        lines += ["| --- | --- | --- | --- | --- | --- |", *map(_row, plan.steps)]
        for b in plan.blocked:
            reason = "; ".join([b.reason, *map(remedy_words, b.remedies)])
            lines.append(f"| **blocked** | `{b.replica.short}` | | | {_cell(reason)} | |")
        lines.append("")
    if plan.steps:
        lines += _memory_table(plan)
    lines += [f"> cannot see {gap.what} of {gap.node}: {gap.reason}" for gap in plan.gaps]
    lines += [f"> note: {note}" for note in plan.notes]
    return "\n".join(lines).rstrip()


def _row(step: Step) -> str:
    place = where(step.placement) if step.placement else ""
    strategy = f" ({step.strategy})" if step.strategy else ""
    spec = _spec(step)
    model, runtime = (f"`{spec.model}`", spec.runtime) if spec else ("", "")
    expected = expected_words(step.expected) if step.expected else ""
    cause = "; ".join(part for part in (step.cause, step.reason, expected) if part)
    cells = (f"{step.verdict}{strategy}", f"`{step.replica.short}`", model, runtime, cause, place)
    return f"| {' | '.join(map(_cell, cells))} |"


def _spec(step: Step) -> LaunchSpec | None:
    """What is started, else what is there already."""
    found = None
    for action in step.actions:
        match action:
            case Launch(spec=spec):
                return spec
            case Reap(orphan=seen) | Stop(launch=seen) | UpdateLive(launch=seen) | Wake(launch=seen):
                found = seen.mark.spec
            case Sleep(launch=seen) | AwaitReady(launch=seen) if seen is not None:
                found = seen.mark.spec
    return found


def _memory_table(plan: Plan) -> list[str]:
    rows = []
    for gpu in changing_gpus(plan.memory):
        numbers = f"{gpu.before_mib:,} | {gpu.peak_mib:,} | {gpu.after_mib:,}"
        rows.append(f"| {_cell(gpu.node)} GPU {gpu.index} | {gpu.total_mib:,} | {numbers} |")
        for step in shown_steps(gpu):
            numbers = f"{step.before_mib:,} | {step.peak_mib:,} | {step.after_mib:,}"
            rows.append(f"| {_cell(step_words(step))} | | {numbers} |")
    header = ["| GPU memory, MiB | total | before | peak | after |", "| --- | ---: | ---: | ---: | ---: |"]
    return [*header, *rows, ""] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
