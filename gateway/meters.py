"""What one worker counts: plain numbers that the request path changes itself, in a fraction of a microsecond.

No metrics library is on that path: exposition.py brings these numbers into a scrape, snapshots.py adds up the
workers. Times are in seconds, sizes in bytes.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from sage_reconcile.model.routing import Backend, RoutingTable

# From what the gateway itself adds to what an engine needs for a long answer.
LATENCY_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
# Engines give 10 to 300 tokens a second to one stream: fine from 3 to 100 ms, coarse around it.
GAP_BOUNDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08,
    0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip

# How long the numbers of a name or replica that left the table are still told, and how many at most.
KEEP_S = 3600.0
KEEP_COUNT = 1000
# Workers forget later than a scrape does, one after another: a sum that loses one of them would look like a
# counter that began anew.
SLACK_S = 300.0

Key = TypeVar("Key", int, str)

# Requests that name no model, or one that is not served.
UNKNOWN = ""


@dataclass(slots=True)
class Histogram:
    """How often a value was at most `bounds[i]` and above the one before; the last count is of larger."""

    bounds: ClassVar[tuple[float, ...]] = LATENCY_BOUNDS
    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: "Histogram") -> None:
        """Raises ValueError if the other one has other bounds: it is of another version of sage."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def quantile(self, share: float) -> float | None:
        """The value that `share` (0 to 1) of the observations do not exceed, or None without observations.

        Linear within a bucket, as PromQL's histogram_quantile; what is above the last bound counts as that.
        """
        rank = share * sum(self.counts)
        below, before = 0.0, 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and before + count >= rank:
                return below + (bound - below) * (rank - before) / count
            below, before = bound, before + count
        return self.bounds[-1] if self.counts[-1] else None


@dataclass(slots=True)
class GapHistogram(Histogram):
    """Of the times between two pieces of a stream, which are shorter than those of whole replies."""

    bounds: ClassVar[tuple[float, ...]] = GAP_BOUNDS
    counts: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS) + 1))


@dataclass(slots=True)
class RouteMeter:
    """Of one model name.

    `first_byte` is from the request's last byte to the first one of the reply's body, `gap` between two
    pieces of a streamed reply; `broken` counts streams that broke after their first byte. `left` is when the
    name left the table (monotonic), 0 while it is there.
    """

    replies: dict[int, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    duration: Histogram = field(default_factory=Histogram)
    first_byte: Histogram = field(default_factory=Histogram)
    gap: GapHistogram = field(default_factory=GapHistogram)
    queue_wait: Histogram = field(default_factory=Histogram)
    hold_wait: Histogram = field(default_factory=Histogram)
    retries: int = 0
    client_left: int = 0
    broken: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    in_flight: int = 0
    queued: int = 0
    held: int = 0
    left: float = 0.0

    def add(self, other: "RouteMeter", gauges: bool) -> None:
        """Adds what another worker counted; its gauges too if it lives."""
        _add_counts(self.replies, other.replies)
        _add_counts(self.refused, other.refused)
        for name in ROUTE_HISTOGRAMS:
            getattr(self, name).add(getattr(other, name))
        _add_numbers(self, other, ROUTE_COUNTERS)
        if gauges:
            _add_numbers(self, other, ROUTE_GAUGES)


ROUTE_HISTOGRAMS = ("duration", "first_byte", "gap", "queue_wait", "hold_wait")
ROUTE_COUNTERS = (
    "retries", "client_left", "broken", "prompt_tokens", "completion_tokens", "bytes_in", "bytes_out",
)  # fmt: skip
ROUTE_GAUGES = ("in_flight", "queued", "held")


@dataclass(slots=True)
class BackendMeter:
    """Of one replica, whatever launches it had.

    `failures` is by kind: connect, reset, timeout, bad_status. `ejected` is 1 while a worker leaves it out.
    """

    stack: str
    engine: str
    replica: int
    node: str = ""
    replies: dict[int, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    first_byte: Histogram = field(default_factory=Histogram)
    ejections: int = 0
    in_flight: int = 0
    ejected: int = 0
    left: float = 0.0

    def add(self, other: "BackendMeter", gauges: bool) -> None:
        """Adds what another worker counted; its gauges too if it lives."""
        _add_counts(self.replies, other.replies)
        _add_counts(self.failures, other.failures)
        self.first_byte.add(other.first_byte)
        self.ejections += other.ejections
        if gauges:
            self.in_flight += other.in_flight
            self.ejected += other.ejected


@dataclass(slots=True)
class Numbers:
    """All that is counted, of one worker or of several. Backends by `stack/engine#replica`."""

    routes: dict[str, RouteMeter] = field(default_factory=dict)
    backends: dict[str, BackendMeter] = field(default_factory=dict)
    access_log_lost: int = 0

    def add(self, other: "Numbers", gauges: bool) -> None:
        """Adds what another worker counted; its gauges too if it lives. Nothing of `other` is kept."""
        for name, route in other.routes.items():
            mine = self.routes.get(name)
            if mine is None:
                mine = self.routes[name] = RouteMeter(left=route.left)
            mine.left = _left(mine.left, route.left)
            mine.add(route, gauges)
        for place, backend in other.backends.items():
            same = self.backends.get(place)
            if same is None:
                same = BackendMeter(backend.stack, backend.engine, backend.replica, backend.node)
                same.left = backend.left
                self.backends[place] = same
            same.left = _left(same.left, backend.left)
            same.node = same.node if same.left else backend.node
            same.add(backend, gauges)
        self.access_log_lost += other.access_log_lost

    def leave(self, routes: Iterable[str], places: Iterable[str], now: float) -> None:
        """Notes which names and replicas are in the table; `now` is monotonic."""
        for known, served in ((self.routes, {UNKNOWN, *routes}), (self.backends, set(places))):
            for key, meter in known.items():
                meter.left = 0.0 if key in served else meter.left or now

    def forget(self, before: float) -> None:
        """Drops what left the table `before` (monotonic), and what left first where that is too much.

        Never what has requests in flight.
        """
        _forget(self.routes, before)
        _forget(self.backends, before)


class Meters:
    """The numbers of this worker. A meter is made on first use, and the same one is given from then on."""

    def __init__(self) -> None:
        self.numbers = Numbers()
        self._served: frozenset[str] = frozenset()
        self._places: frozenset[str] = frozenset()
        self._launches: dict[str, BackendMeter] = {}

    def follow(self, table: RoutingTable, now: float) -> None:
        """To be called with each new table: only its names get meters of their own. `now` is monotonic."""
        self._served = frozenset(route.name for route in table.routes)
        self._places = frozenset(place_of(backend) for backend in table.backends)
        ids = {backend.id for backend in table.backends}
        self._launches = {known: meter for known, meter in self._launches.items() if known in ids}
        self.mark(self.numbers, now)

    def mark(self, numbers: Numbers, now: float) -> None:
        """Notes in `numbers` what is not in this worker's table, and drops what has not been for long."""
        numbers.leave(self._served, self._places, now)
        numbers.forget(now - KEEP_S - SLACK_S)

    def route(self, name: str) -> RouteMeter:
        """The meter of a model name; one for all names that no table had, as clients may send any number."""
        meter = self.numbers.routes.get(name)
        return meter if meter is not None else self._new_route(name)

    def backend(self, backend: Backend) -> BackendMeter:
        """The meter of a backend's replica: a rollout gives it a new launch, which goes on counting there."""
        meter = self._launches.get(backend.id)
        return meter if meter is not None else self._new_launch(backend)

    def _new_route(self, name: str) -> RouteMeter:
        if name not in self._served and name != UNKNOWN:
            return self.route(UNKNOWN)
        meter = self.numbers.routes[name] = RouteMeter()
        return meter

    def _new_launch(self, backend: Backend) -> BackendMeter:
        place = place_of(backend)
        meter = self.numbers.backends.get(place)
        if meter is None:
            meter = BackendMeter(backend.stack, backend.engine, backend.replica)
            self.numbers.backends[place] = meter
        meter.node = backend.node
        self._launches[backend.id] = meter
        return meter


def place_of(backend: Backend) -> str:
    """What stays the same while launches come and go."""
    return f"{backend.stack}/{backend.engine}#{backend.replica}"


def _add_counts(mine: dict[Key, int], theirs: Mapping[Key, int]) -> None:
    for key, count in theirs.items():
        mine[key] = mine.get(key, 0) + count


def _add_numbers(mine: object, theirs: object, names: Sequence[str]) -> None:
    for name in names:
        setattr(mine, name, getattr(mine, name) + getattr(theirs, name))


def _left(mine: float, theirs: float) -> float:
    """Of two workers, when it left the table of the last one that had it; 0 while one has it."""
    return max(mine, theirs) if mine and theirs else 0.0


def _forget(known: dict[str, RouteMeter] | dict[str, BackendMeter], before: float) -> None:
    gone = sorted((meter.left, key) for key, meter in known.items() if meter.left and not meter.in_flight)
    beyond = len(gone) - KEEP_COUNT
    for at, (left, key) in enumerate(gone):
        if at < beyond or left < before:
            del known[key]
