"""A plan as text that a person reviews: deterministic, one line of cause for every step."""

import math
from collections.abc import Iterable, Iterator

from sage_reconcile.model.actions import (
    Blocked,
    Expected,
    GpuTimeline,
    Launch,
    Plan,
    Remedy,
    Step,
    StepMemory,
    Verdict,
)
from sage_reconcile.model.observed import Placement
from sage_reconcile.plan.classify import duration
from sage_reconcile.render.clean import one_line

Line = tuple[str, str]
"""A style of rich, and the text."""

SIGNS = {
    Verdict.START: ("+", "green"),
    Verdict.REPLACE: ("-/+", "yellow"),
    Verdict.UPDATE: ("~", "yellow"),
    Verdict.WAKE: ("^", "green"),
    Verdict.SLEEP: ("v", "yellow"),
    Verdict.AWAIT: ("...", "cyan"),
    Verdict.ADOPT: ("=", "cyan"),
    Verdict.STOP: ("-", "red"),
    Verdict.REAP: ("x", "red"),
}

COUNTED = (
    (Verdict.START, "start"),
    (Verdict.REPLACE, "replace"),
    (Verdict.UPDATE, "update"),
    (Verdict.WAKE, "wake"),
    (Verdict.SLEEP, "put to sleep"),
    (Verdict.ADOPT, "adopt"),
    (Verdict.STOP, "stop"),
    (Verdict.REAP, "reap"),
)


def plan_lines(plan: Plan) -> list[Line]:
    """The whole plan, line by line."""
    lines: list[Line] = [("bold", f"Stack {plan.stack}")]
    for gap in plan.gaps:
        lines.append(("yellow", f"  ? cannot see {gap.what} of {gap.node}: {gap.reason}"))
    lines += [("yellow", f"  note: {note}") for note in plan.notes]
    width = max((len(step.replica.short) for step in plan.steps), default=0)
    width = max([width, *(len(b.replica.short) for b in plan.blocked)])
    for step in plan.steps:
        lines += _step(step, width)
    for blocked in plan.blocked:
        lines.append(("red", _blocked(blocked, width)))
        lines += [("yellow", f"{' ' * (17 + width)}{remedy_words(one)}") for one in blocked.remedies]
    for kept in plan.kept:
        if kept.verdict is Verdict.HOLD:
            lines.append(("yellow", f"  ?   hold     {kept.replica.short:<{width}}  {kept.reason}"))
    if plan.steps:
        lines += _memory(plan.memory)
    lines.append(("", ""))
    lines.append(("bold", headline(plan)))
    return [(style, one_line(text)) for style, text in lines]


def headline(plan: Plan) -> str:
    """The last line: what there is to do, in numbers."""
    counts = [f"{_count(plan, verdict)} to {word}" for verdict, word in COUNTED if _count(plan, verdict)]
    waiting = _count(plan, Verdict.AWAIT)
    counts += [f"{waiting} to wait for"] if waiting else []
    held = sum(kept.verdict is Verdict.HOLD for kept in plan.kept)
    counts += [f"{held} held"] if held else []
    counts += [f"{len(plan.blocked)} blocked"] if plan.blocked else []
    kept = len(plan.kept) - held
    if not counts:
        return f"No changes: {kept} {'replica is' if kept == 1 else 'replicas are'} as the stack says."
    return f"Plan: {', '.join(counts)}, {kept} unchanged."


def _count(plan: Plan, verdict: Verdict) -> int:
    return sum(step.verdict is verdict for step in plan.steps)


def _step(step: Step, width: int) -> Iterator[Line]:
    sign, style = SIGNS[step.verdict]
    yield style, f"  {sign:<3} {step.verdict:<8} {step.replica.short:<{width}}  {step.cause}"
    indent = " " * (17 + width)
    launch = next((action for action in step.actions if isinstance(action, Launch)), None)
    if launch is not None:
        yield "dim", f"{indent}{launch.spec.model} by {launch.spec.runtime} on {where(launch.placement)}"
    if step.strategy is not None:
        yield "dim", f"{indent}{step.strategy}: {step.reason}"
    if step.expected is not None:
        yield "dim", f"{indent}{expected_words(step.expected)}"
    for note in step.notes:
        yield "dim", f"{indent}{note}"
    if step.after:
        yield "dim", f"{indent}after {', '.join(step.after)}"
    if step.behind:
        yield "dim", f"{indent}waits its turn on the GPU: {', '.join(step.behind)}"


def expected_words(expected: Expected) -> str:
    """How long it takes, and who notices."""
    work = "" if expected.work is None else f"about {seconds_words(expected.work)} of work"
    if expected.refused is None and expected.outage is None:
        return work or "seconds without it: unknown, never measured here"
    if not expected.outage:
        return f"no outage, {work or 'seconds of work unknown: never measured here'}"
    away = f"about {seconds_words(expected.outage)} without it"
    if not expected.refused:
        return f"{away}, 0 s of refused requests: they are held"
    held, refused = seconds_words(expected.hold), seconds_words(expected.refused)
    enough = math.ceil(expected.outage * 1.2)
    late = f"those of the first {refused} are refused; rollout.hold: {enough}s"
    return f"{away}: requests are held for {held}, {late} would hold them all"


def seconds_words(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(round(seconds))


def where(place: Placement) -> str:
    """A placement in words."""
    gpus = f"GPU {', '.join(place.gpus)}" if place.gpus else "CPU"
    return f"{place.node}, {gpus}, port {place.port}"


def _blocked(blocked: Blocked, width: int) -> str:
    return f"  !   blocked  {blocked.replica.short:<{width}}  {blocked.reason}"


def remedy_words(remedy: Remedy) -> str:
    return f"would go with {remedy.edit}: {remedy.said}"


_HEADER = "GPU memory, MiB"


def changing_gpus(memory: Iterable[GpuTimeline]) -> list[GpuTimeline]:
    """Only GPUs on which something changes: a fleet has hundreds."""
    return [gpu for gpu in memory if gpu.before_mib != gpu.peak_mib or gpu.before_mib != gpu.after_mib]


def shown_steps(gpu: GpuTimeline) -> tuple[StepMemory, ...]:
    """The steps that change a GPU; a single one is the line of the GPU itself."""
    return gpu.steps if len(gpu.steps) > 1 else ()


def step_words(step: StepMemory) -> str:
    verdict, _, rest = step.step.partition(":")
    return f"{verdict} {rest.partition(':')[0]}"


def _memory(memory: tuple[GpuTimeline, ...]) -> Iterator[Line]:
    rows = changing_gpus(memory)
    if not rows:
        return
    yield "", ""
    names = [step_words(step) for gpu in rows for step in shown_steps(gpu)]
    name = max(
        len(_HEADER), *(len(f"{gpu.node} GPU {gpu.index}") for gpu in rows), *(2 + len(n) for n in names)
    )
    yield "bold", f"  {_HEADER:<{name}}  {'total':>9} {'before':>9} {'peak':>9} {'after':>9}"
    for gpu in rows:
        label = f"{gpu.node} GPU {gpu.index}"
        numbers = f"{gpu.total_mib:>9,} {gpu.before_mib:>9,} {gpu.peak_mib:>9,} {gpu.after_mib:>9,}"
        yield "", f"  {label:<{name}}  {numbers}"
        for step in shown_steps(gpu):
            numbers = f"{'':>9} {step.before_mib:>9,} {step.peak_mib:>9,} {step.after_mib:>9,}"
            yield "dim", f"    {step_words(step):<{name - 2}}  {numbers}"
