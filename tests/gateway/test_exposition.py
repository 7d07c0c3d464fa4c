"""What a scrape tells, read back by Prometheus' own parsers."""

import json
import re
from itertools import pairwise

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.exposition import PREFIX, Extra, exposition
from gateway.identity import Usage
from gateway.meters import Meters
from gateway.snapshots import Total
from gateway.summary import summary
from tests.gateway.world import REPOSITORY, backend, table

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ODD = 'org/"model"\\1\n'
EXTRA = Extra("abc", 1700000000.0, True, {"a": 2, "b": 0})


def total() -> Total:
    """Every kind of number there is, once."""
    one, two = backend("http://x", "e#0", node="lab"), backend("http://y", "e#1")
    meters = Meters()
    meters.follow(table({"a": [one, two], ODD: [one]}), now=1.0)
    for name in ("a", ODD, "unknown"):
        route = meters.route(name)
        route.replies = {200: 3, 503: 1}
        route.refused = {"queue_full": 2}
        for value in (0.002, 0.03, 700.0):
            for histogram in (route.duration, route.first_byte, route.queue_wait, route.hold_wait, route.gap):
                histogram.observe(value)
        route.retries, route.client_left, route.broken = 1, 2, 3
        route.prompt_tokens, route.completion_tokens = 40, 50
        route.bytes_in, route.bytes_out = 600, 700
        route.in_flight, route.queued, route.held = 8, 9, 10
    first = meters.backend(one)
    first.replies, first.failures, first.ejections = {200: 6}, {"reset": 1}, 2
    first.first_byte.observe(0.2)
    first.in_flight, first.ejected = 4, 1
    meters.backend(two)
    meters.follow(table({"a": [one], ODD: [one]}), now=2.0)
    meters.numbers.access_log_lost = 5
    return Total(meters.numbers, [Usage(7, 80 << 20, 12, 3.5)])


def samples(accept: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = exposition(total(), EXTRA, accept)
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
    families = parse_openmetrics(body.decode()) if accept else parse_text(body.decode())
    return {
        (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_numbers_arrive(accept: str) -> None:
    found = samples(accept)
    model = (("model", "a"),)
    place = (("engine", "e"), ("replica", "0"), ("stack", "s"))
    expected = {
        ("requests_total", (*model, ("status", "503"))): 1,
        ("refused_total", (("code", "queue_full"), *model)): 2,
        ("tokens_total", (("kind", "completion"), *model)): 50,
        ("request_seconds_count", model): 3,
        ("request_seconds_sum", model): 700.032,
        ("first_byte_seconds_count", model): 3,
        ("token_gap_seconds_count", model): 3,
        ("queue_seconds_count", model): 3,
        ("hold_seconds_count", model): 3,
        ("retries_total", model): 1,
        ("client_left_total", model): 2,
        ("broken_streams_total", model): 3,
        ("received_bytes_total", model): 600,
        ("sent_bytes_total", model): 700,
        ("in_flight", model): 8,
        ("queued", model): 9,
        ("held", model): 10,
        ("requests_total", (("model", ""), ("status", "200"))): 3,
        ("requests_total", (("model", ODD), ("status", "200"))): 3,
        ("backend_requests_total", (*place, ("status", "200"))): 6,
        ("backend_failures_total", tuple(sorted((*place, ("kind", "reset"))))): 1,
        ("backend_first_byte_seconds_count", place): 1,
        ("backend_ejections_total", place): 2,
        ("backend_in_flight", place): 4,
        ("backend_ejected", place): 1,
        ("backend_info", tuple(sorted((*place, ("node", "lab"))))): 1,
        ("workers", ()): 1,
        ("worker_resident_bytes", (("pid", "7"),)): 80 << 20,
        ("worker_open_fds", (("pid", "7"),)): 12,
        ("worker_cpu_seconds_total", (("pid", "7"),)): 3.5,
        ("access_log_lost_total", ()): 5,
        ("table_info", (("digest", "abc"),)): 1,
        ("table_loaded_timestamp_seconds", ()): 1700000000,
        ("table_stale", ()): 1,
        ("ready_backends", (("model", "b"),)): 0,
    }
    assert {key: found.get(key) for key in expected} == pytest.approx(expected)
    # The second replica has left the table: it still counts, but is nowhere.
    assert [dict(labels)["replica"] for name, labels in found if name == "backend_info"] == ["0"]
    assert ("backend_in_flight", (("engine", "e"), ("replica", "1"), ("stack", "s"))) in found


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_buckets_only_grow(accept: str) -> None:
    of_one = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in samples(accept).items()
        if name == "request_seconds_bucket" and ("model", "a") in labels
    ]
    assert len(of_one) == 20
    assert all(low[0] < high[0] and low[1] <= high[1] for low, high in pairwise(of_one))
    assert of_one[-1] == (float("inf"), 3)
    assert dict(of_one)[0.0025] == 1


def test_nothing_counted_yet() -> None:
    body, _ = exposition(Total(), Extra())
    assert f"# TYPE {PREFIX}requests_total counter" in body.decode()
    assert summary(Total(), {})["models"] == {}


def names_told() -> set[str]:
    return {PREFIX + name for name, _ in samples("")}


def test_the_dashboard_asks_for_what_is_told() -> None:
    text = (REPOSITORY / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8")
    asked = set(re.findall(rf"\b{PREFIX}\w+", text))
    assert len(asked) > 20
    assert asked - names_told() == set()
    board = json.loads(text)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_page_lists_what_is_told() -> None:
    page = (REPOSITORY / "docs" / "gateway-metrics.md").read_text(encoding="utf-8")
    listed = {PREFIX + name for name in re.findall(rf"^\| `{PREFIX}(\w+)", page, re.M)}
    histograms = {name.removesuffix("_bucket") for name in names_told() if name.endswith("_bucket")}
    plain = {name for name in names_told() if name.rpartition("_")[0] not in histograms}
    assert listed == histograms | plain


def test_the_summary() -> None:
    found = summary(total(), {"a": "fifo", "idle": "priority"})
    assert json.loads(json.dumps(found)) == found
    assert found["workers"] == 1
    assert found["total"]["requests"] == 12
    assert set(found["models"]) == {"a", ODD, "idle"}
    assert found["models"]["a"] == {
        "requests": 4,
        "errors": 4,
        "refused": {"queue_full": 2},
        "retries": 1,
        "client_left": 2,
        "in_flight": 8,
        "queue_length": 9,
        "held": 10,
        "latency_ms": {"p50": 37.5, "p95": 600000.0, "p99": 600000.0},
        "first_byte_ms": {"p50": 37.5, "p95": 600000.0, "p99": 600000.0},
        "token_gap_ms": {"p50": 25.0, "p95": 10000.0, "p99": 10000.0},
        "queue_ms": {"p50": 37.5, "p95": 600000.0, "p99": 600000.0},
        "prompt_tokens": 40,
        "completion_tokens": 50,
        "policy": "fifo",
    }
    assert found["models"]["idle"]["latency_ms"] == {"p50": None, "p95": None, "p99": None}
