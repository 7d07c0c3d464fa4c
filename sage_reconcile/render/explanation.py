"""`sage plan --explain ENGINE` as text and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sage_reconcile.model.estimate import Estimate
from sage_reconcile.model.facts import Fact
from sage_reconcile.plan.explanation import Explanation
from sage_reconcile.render.clean import one_line
from sage_reconcile.render.facts import versions, when
from sage_reconcile.render.plan_text import Line

_WORDS = {
    "weights": "weights",
    "kv_cache": "KV cache",
    "activations": "activations",
    "graphs": "CUDA graphs",
    "lora": "LoRA adapters",
    "context": "CUDA context and runtime",
}


def explanation_lines(said: Explanation) -> list[Line]:
    """The memory of one engine on one GPU part by part, then each GPU with the reason."""
    lines: list[Line] = [("", ""), ("bold", f"Engine {said.engine}: {said.model}"), ("", f"  {said.where}")]
    lines += [("", f"  {line}") for line in _memory(said)]
    if said.shortage:
        lines.append(("yellow", f"  does not fit: {said.shortage}"))
    if said.gpus:
        lines += [
            ("", ""),
            ("bold", f"  {'GPU, MiB':<24} {'total':>9} {'others':>9} {'engines':>9} {'free':>9}"),
        ]
    for gpu in said.gpus:
        numbers = f"{gpu.total_mib:>9,} {gpu.foreign_mib:>9,} {gpu.engines_mib:>9,} {gpu.free_mib:>9,}"
        style = "green" if gpu.is_taken else ""
        lines.append((style, f"  {f'{gpu.node} GPU {gpu.index}':<24} {numbers}  {gpu.reason}"))
    return [(style, one_line(text)) for style, text in lines]


def _memory(said: Explanation) -> Iterator[str]:
    counted = "unknown" if said.need_mib is None else f"{said.need_mib:,} MiB"
    yield f"counted on each GPU: {counted}{f' ({said.need_source})' if said.need_source else ''}"
    if said.fact is not None:
        yield _measured(said.fact, said.estimate)
    found = said.estimate
    if found is None:
        yield f"no estimate: {said.unknown}"
        return
    yield f"estimate for the fullest GPU, from {found.source}:"
    for name, word in _WORDS.items():
        if value := getattr(found.parts, name):
            yield f"  {word:<26} {value:>9,} MiB{_more(name, found)}"
    yield f"  {'total':<26} {found.parts.total:>9,} MiB"
    for line in found.assumed:
        yield f"  assumed: {line}"


def _measured(fact: Fact, found: Estimate | None) -> str:
    """The fact, beside the estimate."""
    parts = []
    if fact.held_mib is not None:
        beside = ""
        if found is not None:
            more = fact.held_mib - found.parts.total
            beside = f" ({abs(more):,} {'more' if more > 0 else 'less'} than estimated)"
        parts.append(f"{fact.held_mib:,} MiB{beside}")
    parts += [f"{fact.asleep_mib:,} MiB asleep"] if fact.asleep_mib is not None else []
    times = {
        "start": fact.start_seconds,
        "sleep": fact.sleep_seconds,
        "wake": fact.wake_seconds,
        "stop": fact.stop_seconds,
    }
    parts += [f"{name} {seconds:,.1f} s" for name, seconds in times.items() if seconds is not None]
    where = ", ".join(part for part in (when(fact), fact.gpu or "CPU", versions(fact)) if part)
    return f"measured here before: {', '.join(parts)}; {where}"


def _more(name: str, found: Estimate) -> str:
    """What explains one line of the breakdown."""
    if name == "weights":
        stages = f", by pipeline stage {', '.join(f'{mib:,}' for mib in found.stages)}"
        return f"  {found.dtype}{stages if len(found.stages) > 1 else ''}"
    if name == "kv_cache" and found.share_mib is not None:
        request = f"one request of {found.max_len:,} takes {found.request_mib:,} MiB"
        return (
            f"  what is left of {found.share_mib:,}: {found.tokens:,} tokens in {found.kv_dtype}; {request}"
        )
    if name == "context" and found.share_mib is not None:
        return "  beyond the share"
    return ""


def explanation_data(said: Explanation) -> dict[str, Any]:
    """The `explain` part of the plan as JSON."""
    data = asdict(said)
    if said.estimate is not None:
        data["estimate"]["parts"]["total"] = said.estimate.parts.total
        data["estimate"]["lacks_mib"] = said.estimate.lacks_mib
    return data
