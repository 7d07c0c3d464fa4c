"""Faults, one after another, and what became of each."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.faults.kinds import KINDS, Kind
from tests.faults.load import Load
from tests.faults.stack import Fleet
from tests.waiting import wait_until

CONVERGE_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """One fault. `seconds`: from its making to the moment when all is well again, "" in `fault` if it was."""

    kind: str
    engine: str
    seconds: float
    requests: Counter[str]
    fault: str = ""


def draw(seed: int, count: int, fleet: Fleet) -> Iterator[tuple[str, str]]:
    """So many faults; each kind as often as any other, in an order that only the seed decides."""
    chance = random.Random(seed)
    kinds = [name for name, kind in KINDS.items() if kind.is_possible(fleet)]
    order: list[str] = []
    while len(order) < count:
        order += chance.sample(kinds, len(kinds))
    for kind in order[:count]:
        yield kind, chance.choice(fleet.names[1::2] if KINDS[kind].needs_worker else fleet.names)


def bring(fleet: Fleet, load: Load, kind_name: str, name: str) -> Outcome:
    """Makes the fault and waits until all is well again."""
    kind = KINDS[kind_name]
    known = len(fleet.events())
    load.told.take()
    begun = time.monotonic()
    fault = ""
    try:
        kind.make(fleet, name)
        # Also told must it be: an event may be written a moment after what it tells of.
        wait_until(lambda: is_told(fleet, kind, name, known), f"told in the events: {kind.words}", CONVERGE_S)
        wait_until(lambda: not fleet.trouble(), "all is well again", CONVERGE_S)
    except (AssertionError, pytest.fail.Exception) as error:
        fault = f"{error}; {fleet.trouble()}"
    return Outcome(kind_name, name, time.monotonic() - begun, load.told.take(), fault)


def is_told(fleet: Fleet, kind: Kind, name: str, known: int) -> bool:
    subject = kind.subject.format(name=name)
    return any(
        subject in event["subject"] and all(word in event["message"] for word in kind.words)
        for event in fleet.events()[known:]
    )


def table(outcomes: list[Outcome]) -> str:
    """A line a kind: how many, seconds until all was well, requests and failed ones."""
    lines = [
        "| fault | times | well again after s, median / max | requests | failed |",
        "|---|---:|---:|---:|---|",
    ]
    for kind in [*KINDS, "all"]:
        chosen = [one for one in outcomes if kind in (one.kind, "all")]
        if not chosen:
            continue
        seconds = [one.seconds for one in chosen]
        requests: Counter[str] = sum((one.requests for one in chosen), Counter())
        failed = ", ".join(f"{count} {end}" for end, count in sorted(requests.items()) if end != "ok") or "0"
        lines.append(
            f"| {kind} | {len(chosen)} | {statistics.median(seconds):.1f} / {max(seconds):.1f} "
            f"| {requests.total():,} | {failed} |"
        )
    return "\n".join(lines)
