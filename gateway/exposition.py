"""GET /metrics: the numbers as Prometheus or OpenMetrics text.

prometheus_client writes the text; nothing else of it is used, and it is loaded at the first scrape.
docs/gateway-metrics.md lists every name.
"""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.meters import BackendMeter, Histogram, RouteMeter
from gateway.snapshots import Total
from sage_reconcile.version import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PREFIX = "sage_gateway_"
_PLACE = ("stack", "engine", "replica")

# Name, field of RouteMeter, help.
_ROUTE_HISTOGRAMS = (
    ("request_seconds", "duration", "From the request's last byte to the reply's last one."),
    ("first_byte_seconds", "first_byte", "From the request's last byte to the reply body's first one."),
    ("token_gap_seconds", "gap", "Between two pieces of a streamed reply."),
    ("queue_seconds", "queue_wait", "In the queue, until an engine had room."),
    ("hold_seconds", "hold_wait", "Held while no engine was ready."),
)
_ROUTE_COUNTERS = (
    ("retries", "retries", "Requests sent again because an engine failed before its first byte."),
    ("client_left", "client_left", "Requests whose client left before the end of the reply."),
    ("broken_streams", "broken", "Replies that broke after their first byte."),
    ("received_bytes", "bytes_in", "Bytes of request bodies."),
    ("sent_bytes", "bytes_out", "Bytes of reply bodies."),
)
_ROUTE_GAUGES = (
    ("in_flight", "in_flight", "Requests at an engine now."),
    ("queued", "queued", "Requests in the queue now."),
    ("held", "held", "Requests held now, as no engine is ready."),
)


@dataclass(frozen=True, slots=True)
class Extra:
    """What a scrape tells besides the numbers: of the routing table, and how many backends a name has ready.

    `loaded_at` in Unix seconds; `is_stale` if the file on disk cannot be served by.
    """

    digest: str = ""
    loaded_at: float = 0.0
    is_stale: bool = False
    ready: Mapping[str, int] = field(default_factory=dict)


def exposition(total: Total, extra: Extra, accept: str = "") -> tuple[bytes, str]:
    """The body of a scrape and its content type; OpenMetrics if the header `accept` asks for it.

    May run in a thread: a thousand models take a second.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector

    class Families(Collector):
        def collect(self) -> Iterator["Metric"]:
            yield from families(total, extra)

    # auto_describe would collect everything twice.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # A version that is no number, for one.
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


def families(total: Total, extra: Extra) -> Iterator["Metric"]:
    """Every metric there is; one without samples too, so that its name is known from the first scrape on."""
    yield from _of_routes(total.numbers.routes)
    yield from _of_backends(list(total.numbers.backends.values()))
    yield from _of_processes(total)
    yield from _of_table(extra)


def _of_routes(routes: Mapping[str, RouteMeter]) -> Iterator["Metric"]:
    yield _counter(
        "requests",
        "Replies by HTTP status.",
        ("model", "status"),
        (((name, str(s)), n) for name, meter in routes.items() for s, n in sorted(meter.replies.items())),
    )
    yield _counter(
        "refused",
        "Requests that the gateway itself refused, by error code.",
        ("model", "code"),
        (((name, code), n) for name, meter in routes.items() for code, n in sorted(meter.refused.items())),
    )
    yield _counter("tokens", "Tokens by the usage that engines tell.", ("model", "kind"), _tokens(routes))
    for metric, attribute, text in _ROUTE_HISTOGRAMS:
        of_all = (((name,), getattr(meter, attribute)) for name, meter in routes.items())
        yield _histogram(metric, text, ("model",), of_all)
    for metric, attribute, text in _ROUTE_COUNTERS:
        yield _counter(metric, text, ("model",), _values(routes, attribute))
    for metric, attribute, text in _ROUTE_GAUGES:
        yield _gauge(metric, text, ("model",), _values(routes, attribute))


def _of_backends(backends: Sequence[BackendMeter]) -> Iterator["Metric"]:
    yield _counter(
        "backend_requests",
        "Replies of a replica by HTTP status.",
        (*_PLACE, "status"),
        (((*_place(meter), str(s)), n) for meter in backends for s, n in sorted(meter.replies.items())),
    )
    yield _counter(
        "backend_failures",
        "Requests that a replica failed before its first byte: connect, reset, timeout, bad_status.",
        (*_PLACE, "kind"),
        (((*_place(meter), kind), n) for meter in backends for kind, n in sorted(meter.failures.items())),
    )
    first_bytes = ((_place(meter), meter.first_byte) for meter in backends)
    yield _histogram("backend_first_byte_seconds", "Until the first byte of the body.", _PLACE, first_bytes)
    ejections = ((_place(meter), meter.ejections) for meter in backends)
    yield _counter("backend_ejections", "Times that a worker left a replica out.", _PLACE, ejections)
    in_flight = ((_place(meter), meter.in_flight) for meter in backends)
    yield _gauge("backend_in_flight", "Requests at a replica now.", _PLACE, in_flight)
    ejected = ((_place(meter), meter.ejected) for meter in backends)
    yield _gauge("backend_ejected", "Workers that leave a replica out now.", _PLACE, ejected)
    nodes = (((*_place(meter), meter.node), 1) for meter in backends if not meter.left)
    yield _gauge("backend_info", "Where a replica of the table runs.", (*_PLACE, "node"), nodes)


def _of_processes(total: Total) -> Iterator["Metric"]:
    workers = {str(usage.pid): usage for usage in total.workers}
    yield _gauge("workers", "Living worker processes.", (), [((), len(workers))])
    resident = (((pid,), usage.resident_bytes) for pid, usage in workers.items())
    yield _gauge("worker_resident_bytes", "Memory of a worker (RSS).", ("pid",), resident)
    descriptors = (((pid,), usage.open_fds) for pid, usage in workers.items())
    yield _gauge("worker_open_fds", "Open files and connections of a worker.", ("pid",), descriptors)
    cpu = (((pid,), usage.cpu_seconds) for pid, usage in workers.items())
    yield _counter("worker_cpu_seconds", "CPU time of a worker.", ("pid",), cpu)
    lost = [((), total.numbers.access_log_lost)]
    yield _counter("access_log_lost", "Lines of the access log that could not be written.", (), lost)
    built = [((__version__, platform.python_version()), 1)]
    yield _gauge("build_info", "Version of sage and of Python.", ("version", "python"), built)


def _of_table(extra: Extra) -> Iterator["Metric"]:
    yield _gauge("table_info", "The routing table served by.", ("digest",), [((extra.digest,), 1)])
    loaded = [((), extra.loaded_at)]
    yield _gauge("table_loaded_timestamp_seconds", "When the table was loaded, Unix time.", (), loaded)
    stale = [((), int(extra.is_stale))]
    yield _gauge("table_stale", "1 while the file on disk is no good: the last good table serves.", (), stale)
    ready = (((name,), count) for name, count in sorted(extra.ready.items()))
    yield _gauge("ready_backends", "Replicas of a model that take requests.", ("model",), ready)


Samples = Iterable[tuple[Sequence[str], float]]


def _counter(name: str, text: str, labels: Sequence[str], samples: Samples) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _gauge(name: str, text: str, labels: Sequence[str], samples: Samples) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _histogram(
    name: str, text: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], Histogram]]
) -> "Metric":
    """Those without an observation are left out: a name has twenty series in each of its histograms."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for values, histogram in samples:
        buckets, count = [], 0
        for bound, more in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            count += more
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(count)))
        if count:
            family.add_metric(values, buckets, histogram.total)
    return family


def _values(routes: Mapping[str, RouteMeter], attribute: str) -> Samples:
    return (((name,), getattr(meter, attribute)) for name, meter in routes.items())


def _tokens(routes: Mapping[str, RouteMeter]) -> Samples:
    for name, meter in routes.items():
        yield (name, "prompt"), meter.prompt_tokens
        yield (name, "completion"), meter.completion_tokens


def _place(meter: BackendMeter) -> tuple[str, str, str]:
    return meter.stack, meter.engine, str(meter.replica)
