"""Medians over the turns, the table that people read, and the goals."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.gateway.turn import PHASES, Result

REFERENCE = "vllm-router"
SUBJECT = "sage"


def medians(turns: Sequence[Result]) -> Result:
    """The median of every number over the turns; of lists and texts the first turn's."""
    merged: Result = {}
    for key in {key: None for turn in turns for key in turn}:
        values = [turn[key] for turn in turns if key in turn]
        if isinstance(values[0], dict):
            merged[key] = medians(values)
        elif isinstance(values[0], int | float):
            merged[key] = round(statistics.median(values), 6)
        else:
            merged[key] = values[0]
    return merged


def normalise(turns: Mapping[str, Sequence[Result]], best: float) -> None:
    """Adds `cpu_us`: CPU time divided by how much slower than at its best the gateway's core was.

    What "direct" used is not divided: the upstream runs on the other core, whose speed is not watched.
    """
    for name, results in turns.items():
        for found in (turn[phase] for turn in results for phase in PHASES if phase in turn):
            found["slowness"] = 1.0 if name == "direct" else found["work_s"] / best
            found["cpu_us"] = found["cpu_us_raw"] / found["slowness"]


def errors(result: Result) -> int:
    """Failed requests, broken streams, and streams that had not ended two seconds after their time."""
    count = 0
    for found in (result[phase] for phase in PHASES if phase in result):
        count += found.get("status_errors", 0) + found.get("socket_errors", 0)
        count += len(found.get("errors", ())) + found.get("late", 0)
    return int(count)


@dataclass(frozen=True)
class Rows:
    """All medians by target name, with the values that a column may ask for."""

    results: Mapping[str, Result]

    def value(self, name: str, *path: str) -> float:
        """Raises KeyError where it was not measured."""
        found: object = self.results[name]
        for key in path:
            if not isinstance(found, dict):
                raise KeyError(key)
            found = found[key]
        return float(found)  # type: ignore[arg-type]

    def added(self, name: str, *path: str) -> float:
        """What the target adds to asking the upstream directly."""
        return self.value(name, *path) - self.value("direct", *path)

    def ratio(self, name: str, other: str, *path: str) -> float:
        if name == "direct":
            raise KeyError(name)
        return self.value(name, *path) / self.value(other, *path)

    def beside(self, *path: str) -> float:
        """sage's value as a multiple of vllm-router's."""
        return self.ratio(SUBJECT, REFERENCE, *path)

    def pair(self, name: str, phase: str, key: str) -> str:
        return f"{self.value(name, phase, key, 'p50'):.2f}/{self.value(name, phase, key, 'p99'):.2f}"

    def slowness(self, name: str) -> float:
        return max(self.value(name, phase, "slowness") for phase in PHASES if phase in self.results[name])


COLUMNS: tuple[tuple[str, Callable[[Rows, str], object], str], ...] = (
    ("req/s", lambda r, n: r.value(n, "json", "per_s"), "{:,.0f}"),
    ("p99 ms", lambda r, n: r.value(n, "json", "p99_us") / 1000, "{:.2f}"),
    ("CPU µs/req", lambda r, n: r.value(n, "json", "cpu_us"), "{:.1f}"),
    ("x", lambda r, n: r.ratio(n, REFERENCE, "json", "cpu_us"), "{:.2f}"),
    ("core use", lambda r, n: 100 * r.value(n, "json", "core_use"), "{:.0f} %"),
    ("+p50 µs", lambda r, n: r.added(n, "single", "p50_us"), "{:+,.0f}"),
    ("+p99 µs", lambda r, n: r.added(n, "single", "p99_us"), "{:+,.0f}"),
    ("streams/s", lambda r, n: r.value(n, "stream", "per_s"), "{:,.0f}"),
    ("burst µs/event", lambda r, n: r.value(n, "stream", "cpu_us"), "{:.2f}"),
    ("x", lambda r, n: r.ratio(n, REFERENCE, "stream", "cpu_us"), "{:.2f}"),
    ("paced µs/event", lambda r, n: r.value(n, "paced", "cpu_us"), "{:.1f}"),
    ("x", lambda r, n: r.ratio(n, REFERENCE, "paced", "cpu_us"), "{:.2f}"),
    ("events/s", lambda r, n: r.value(n, "paced", "events_per_s"), "{:,.0f}"),
    ("TTFT ms", lambda r, n: r.pair(n, "paced", "ttft_ms"), "{}"),
    ("transit ms", lambda r, n: r.pair(n, "paced", "transit_ms"), "{}"),
    ("gap p99", lambda r, n: r.value(n, "paced", "gap_ms", "p99"), "{:.1f}"),
    ("RSS MiB", lambda r, n: r.value(n, "rss_mib"), "{:.0f}"),
    ("largest", lambda r, n: r.value(n, "worker_rss_mib"), "{:.0f}"),
    ("start s", lambda r, n: r.value(n, "first_200_s"), "{:.2f}"),
    ("slowed", lambda r, n: r.slowness(n), "{:.2f}"),
    ("errors", lambda r, n: errors(r.results[n]), "{}"),
)


def table(results: Mapping[str, Result]) -> str:
    """The table, as Markdown; empty cells are what was not measured."""
    every = Rows(results)
    lines = [["target", *(head for head, _, _ in COLUMNS)]]
    for name in results:
        line = [name]
        for _, value, form in COLUMNS:
            try:
                line.append(form.format(value(every, name)))
            except (KeyError, ValueError, ZeroDivisionError):
                line.append("")
        lines.append(line)
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join("| " + " | ".join(_cells(line, widths)) + " |" for line in lines)


def _cells(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    rest = zip(line[1:], widths[1:], strict=True)
    return [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in rest)]


@dataclass(frozen=True)
class Goal:
    """`value` may be at most `limit`; KeyError from it means that what it needs was not measured."""

    text: str
    limit: float
    value: Callable[[Rows], float]
    form: Callable[[float], str] = "{:.2f} x".format
    aim: float | None = None

    def told(self, rows: Rows) -> tuple[str, bool]:
        """One line about it, and whether it is missed."""
        try:
            value = self.value(rows)
        except (KeyError, ValueError, ZeroDivisionError):
            return f"not measured  {self.text}", False
        is_missed = value > self.limit
        verdict = "MISSED" if is_missed else "met"
        aim = f" (aim {self.form(self.aim)}: {'met' if value <= self.aim else 'not met'})" if self.aim else ""
        return f"{verdict:<12}  {self.text}: {self.form(value)}{aim}", is_missed


GOALS = (
    Goal("CPU per request at most 0.8 x vllm-router's", 0.8, lambda r: r.beside("json", "cpu_us"), aim=0.6),
    Goal("CPU per event of a burst at most 0.2 x vllm-router's", 0.2, lambda r: r.beside("stream", "cpu_us")),
    Goal("CPU per paced event at most 1.0 x vllm-router's", 1.0, lambda r: r.beside("paced", "cpu_us")),
    Goal(
        "CPU per request at most 1/300 of litellm's",
        1 / 300,
        lambda r: r.ratio(SUBJECT, "litellm", "json", "cpu_us"),
        lambda ratio: f"1/{1 / ratio:,.0f}",
    ),
    Goal(
        "p99 transit of paced events at most vllm-router's",
        1.0,
        lambda r: r.beside("paced", "transit_ms", "p99"),
    ),
    Goal(
        "peak RSS of a worker at most 80 MiB",
        80,
        lambda r: r.value(SUBJECT, "worker_rss_mib"),
        "{:.1f} MiB".format,
    ),
    Goal("requests that failed or never ended", 0, lambda r: errors(r.results[SUBJECT]), "{:.0f}".format),
)


def goals(results: Mapping[str, Result]) -> tuple[str, bool]:
    """One line for each goal, and whether none is missed."""
    told = [goal.told(Rows(results)) for goal in GOALS]
    return "\n".join(line for line, _ in told), not any(is_missed for _, is_missed in told)
