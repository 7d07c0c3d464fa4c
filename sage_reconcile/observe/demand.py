"""Which engines on demand are asked for, as the workers of the gateway tell in files of their own."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from sage_reconcile.home import Home
from sage_reconcile.model.observed import Demand

Asked = tuple[str, str, float]
"""A stack, an engine of it, and since when somebody waits for it (epoch seconds)."""


def read_demand(home: Home) -> tuple[Demand, ...] | None:
    """The sum over the living workers, by stack and engine; None where none lives.

    What a worker that has ended last had is known all the same; what it held and had in flight is over.
    """
    sums: dict[tuple[str, str], Demand] = {}
    has_worker = False
    for path in _files(home):
        is_alive = _is_alive(path.stem)
        has_worker = has_worker or is_alive
        for told in _read(path):
            key = told.stack, told.engine
            before = sums.get(key, Demand(*key))
            sums[key] = Demand(
                *key,
                waiting=before.waiting + told.waiting * is_alive,
                since=_first(before.since, told.since * is_alive),
                in_flight=before.in_flight + told.in_flight * is_alive,
                last=max(before.last, told.last),
            )
    return tuple(sums[key] for key in sorted(sums)) if has_worker else None


def who_waits(home: Home) -> frozenset[Asked]:
    """Every engine that requests are held for."""
    return frozenset((d.stack, d.engine, d.since) for d in read_demand(home) or () if d.waiting)


def _first(one: float, other: float) -> float:
    return min(one, other) if one and other else one or other


def _files(home: Home) -> list[Path]:
    try:
        return sorted((home.run / "gateway" / "demand").glob("*.json"))
    except OSError:
        return []


def _read(path: Path) -> Iterator[Demand]:
    try:
        yield from msgspec.json.decode(path.read_bytes(), type=list[Demand])
    except (OSError, ValueError):
        return


def _is_alive(name: str) -> bool:
    """Whether the process `<pid>-<start time>` lives: ids come again, both together do not."""
    pid, _, started = name.partition("-")
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return False
    return fields[0] not in "ZX" and fields[19] == started
