"""GET /admin/metrics: the numbers as one JSON object, for benchmark clients and people."""

from collections.abc import Mapping
from typing import Any

from gateway.meters import Histogram, RouteMeter
from gateway.snapshots import Total

_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def summary(total: Total, policies: Mapping[str, str]) -> dict[str, Any]:
    """What the gateway has counted since it started, all workers together.

    `policies` is the scheduling policy of each model name served. docs/gateway-metrics.md shows the shape;
    times are in milliseconds, and null where nothing was observed.
    """
    routes = total.numbers.routes
    everything = RouteMeter()
    for meter in routes.values():
        everything.add(meter, gauges=True)
    models = {
        name: {**_numbers(routes.get(name) or RouteMeter()), "policy": policies.get(name)}
        for name in sorted({*policies, *(name for name in routes if name)})
    }
    return {"workers": len(total.workers), "total": _numbers(everything), "models": models}


def _numbers(meter: RouteMeter) -> dict[str, Any]:
    """`errors` are replies with a status of 400 or more, and those that broke after their first byte."""
    failed = sum(count for status, count in meter.replies.items() if status >= 400)
    return {
        "requests": sum(meter.replies.values()),
        "errors": failed + meter.broken,
        "refused": dict(sorted(meter.refused.items())),
        "retries": meter.retries,
        "client_left": meter.client_left,
        "in_flight": meter.in_flight,
        "queue_length": meter.queued,
        "held": meter.held,
        "latency_ms": _quantiles(meter.duration),
        "first_byte_ms": _quantiles(meter.first_byte),
        "token_gap_ms": _quantiles(meter.gap),
        "queue_ms": _quantiles(meter.queue_wait),
        "prompt_tokens": meter.prompt_tokens,
        "completion_tokens": meter.completion_tokens,
    }


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    found = {name: histogram.quantile(share) for name, share in _SHARES.items()}
    return {name: None if value is None else round(value * 1000, 3) for name, value in found.items()}
