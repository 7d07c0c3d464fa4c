"""What is told of requests adds up: to the client, in the metrics, in the access log, and to the engine."""

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.gateway.world import DEADLINE_S, FakeEngine, Gateway, RecordingEngine, Script, backend, wait_for

USED = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}'
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path / "home", "--workers", "2") as running:
        yield running


def workers(gateway: Gateway) -> list[int]:
    children = psutil.Process(gateway.process.pid).children()
    return sorted(child.pid for child in children if "gateway.worker" in " ".join(child.cmdline()))


def by_status(gateway: Gateway) -> Counter[int]:
    """Requests to engines by status, of all models, as a scrape tells them."""
    counted: Counter[int] = Counter()
    for line in httpx.get(f"{gateway.url}/metrics", trust_env=False).text.splitlines():
        if line.startswith("sage_gateway_requests_total{"):
            counted[int(line.partition('status="')[2].split('"')[0])] += int(float(line.split()[-1]))
    return counted


def access(gateway: Gateway) -> list[dict[str, Any]]:
    path = gateway.home / "logs" / "access.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ask(gateway: Gateway, number: int) -> int:
    """A request over a connection of its own, so that both workers get some."""
    body = [b'{"model":"fake"}', b'{"model":"nothing"}', b"{", b'{"model":"fake","stream":true}'][number % 4]
    reply = httpx.post(f"{gateway.url}/v1/completions", content=body, trust_env=False)
    return reply.status_code


def test_counts_of_two_workers_of_which_one_is_killed(pair: Gateway, engine: FakeEngine) -> None:
    digest = pair.serve({"fake": [backend(engine.url)]})
    wait_for(lambda: "".join(pair.output).count(f"table {digest}") == 2, "both workers serve by the table")
    seen = Counter(ask(pair, number) for number in range(60))
    assert seen == {200: 30, 404: 15, 400: 15}
    wait_for(lambda: by_status(pair) == seen, "the metrics tell what the clients saw")
    wait_for(lambda: len(access(pair)) == 60, "a line for each")
    old = workers(pair)
    os.kill(old[0], signal.SIGKILL)
    wait_for(lambda: "".join(pair.output).count(f"table {digest}") == 3, "another worker serves")
    seen += Counter(ask(pair, number) for number in range(40))
    wait_for(lambda: by_status(pair) == seen, "nothing is forgotten, and nothing counted twice")
    wait_for(lambda: len(access(pair)) == 100, "a line for each")
    assert Counter(line["status"] for line in access(pair)) == seen


def line_of(gateway: Gateway, request_id: str) -> dict[str, Any]:
    return wait_for(
        lambda: next((line for line in access(gateway) if line["request_id"] == request_id), {}), request_id
    )


def test_a_request_is_the_same_everywhere(gateway: Gateway, recorder: RecordingEngine) -> None:
    recorder.script = Script(chunks=[USED])
    gateway.serve({"fake": [backend(recorder.url, "chat#1")]})
    for given in ({"x-request-id": "mine-1", "traceparent": TRACE}, {}):
        reply = gateway.client.post("/v1/completions", json={"model": "fake"}, headers=given)
        request_id = reply.headers["x-request-id"]
        got = {name.lower(): value for name, value in recorder.requests[-1].headers.items()}
        assert got["x-request-id"] == request_id == given.get("x-request-id", request_id)
        assert got.get("traceparent") == given.get("traceparent")
        line = line_of(gateway, request_id)
        told = {name: line[name] for name in ("status", "src", "backend", "model", "path", "stream", "error")}
        assert told == {
            "status": 200,
            "src": "engine",
            "backend": "chat#1",
            "model": "fake",
            "path": "/v1/completions",
            "stream": False,
            "error": "",
        }
        assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 5)
        assert (line["bytes_in"], line["queued_ms"], line["held_ms"]) == (16, 0, 0)
        assert line["ms"] >= line["first_byte_ms"] > 0


def test_streams_and_refusals_are_told_apart(gateway: Gateway, recorder: RecordingEngine) -> None:
    was_read = threading.Semaphore(0)

    def events() -> Iterator[bytes]:
        """Each is sent when the client has the one before, so that none arrives along with another."""
        for event in (b"{}", USED, b'{"choices":[]}', b"[DONE]"):
            yield b"data: " + event + b"\n\n"
            was_read.acquire(timeout=DEADLINE_S)

    recorder.script = Script(200, {"content-type": "text/event-stream"}, events())
    gateway.serve({"fake": [backend(recorder.url)]})
    with gateway.client.stream("POST", "/v1/completions", json={"model": "fake"}) as reply:
        for _ in reply.iter_raw():
            was_read.release()
    streamed = line_of(gateway, reply.headers["x-request-id"])
    assert (streamed["stream"], streamed["completion_tokens"], streamed["src"]) == (True, 5, "engine")
    refused = line_of(gateway, gateway.chat("nothing").headers["x-request-id"])
    told = (refused["status"], refused["src"], refused["error"], refused["backend"], refused["model"])
    assert told == (404, "sage", "model_not_found", "", "nothing")


def test_how_long_it_waited(gateway: Gateway, recorder: RecordingEngine) -> None:
    gateway.serve({"fake": [backend(recorder.url, state="pending")]}, hold=0.2)
    held = gateway.chat()
    assert held.status_code == 503
    line = line_of(gateway, held.headers["x-request-id"])
    assert line["held_ms"] >= 200
    assert (line["queued_ms"], line["error"]) == (0, "no_ready_backend")
    recorder.script = Script(chunks=[USED, None])
    gateway.serve({"fake": [backend(recorder.url, max_concurrent=1)]})
    body = {"model": "fake"}
    with gateway.client.stream("POST", "/v1/completions", json=body) as first:
        chunks = first.iter_raw()
        next(chunks)
        ask_second = httpx.Client(base_url=gateway.url, trust_env=False)
        with ask_second, pytest.raises(httpx.ReadTimeout):
            ask_second.post("/v1/completions", json=body, headers={"x-request-id": "waits-1"}, timeout=0.3)
        recorder.go_on.set()
    waited = line_of(gateway, "waits-1")
    assert waited["queued_ms"] >= 200
    assert (waited["status"], waited["held_ms"]) == (499, 0)
