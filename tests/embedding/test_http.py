"""The HTTP face over a real uvicorn, with a fake model."""

import base64
import http.client
import json
import math
import re
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from sage_reconcile.embedding.app import MAX_BODY_BYTES, create_app
from sage_reconcile.embedding.batching import BROKEN_AFTER, Batcher
from sage_reconcile.embedding.metrics import Metrics
from sage_reconcile.embedding.server import bind
from sage_reconcile.embedding.service import EmbeddingService
from tests.embedding.fakes import DEADLINE, POISON, FakeEmbedder, until


@dataclass
class Running:
    model: FakeEmbedder
    batcher: Batcher[bytes]
    http: httpx.Client
    port: int

    def embed(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/embeddings", json={"model": "tiny", "input": "hello", **body})

    def metric(self, line: str) -> float:
        found = re.search(rf"^{re.escape(line)} (.*)$", self.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture
def engine() -> Iterator[Running]:
    model = FakeEmbedder()
    metrics = Metrics()
    batcher: Batcher[bytes] = Batcher(model.encode, 64, 0.0, 100, metrics.batch_done)
    app = create_app(EmbeddingService(model, batcher, metrics, ("tiny", "alias"), truncate=False))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    with bind("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            until("the server's start", lambda: server.started)
            port = sock.getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as client:
                yield Running(model, batcher, client, port)
        finally:
            model.gate.set()
            server.should_exit = True
            thread.join(DEADLINE)
    assert not thread.is_alive()


def floats(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def test_the_openai_client_gets_vectors_in_order(engine: Running) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{engine.port}/v1", api_key="none", max_retries=0)
    texts = ["one", "the longest text of them all", "two words"]
    with client:
        reply = client.embeddings.create(model="alias", input=texts)
    tokens = engine.model.tokenize(texts, truncate=False)
    assert [item.index for item in reply.data] == [0, 1, 2]
    assert [item.embedding for item in reply.data] == [floats(engine.model.vector(t)) for t in tokens]
    assert reply.model == "alias"
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(map(len, tokens))


def test_base64_is_the_same_vector_as_float(engine: Running) -> None:
    as_float = engine.embed().json()["data"][0]["embedding"]
    as_text = engine.embed(encoding_format="base64").json()["data"][0]["embedding"]
    assert floats(base64.b64decode(as_text)) == as_float


@pytest.mark.parametrize("shape", [[3, 4, 5], [[3, 4, 5], [6]]])
def test_token_ids_are_embedded_as_they_are(engine: Running, shape: list[Any]) -> None:
    lists = shape if isinstance(shape[0], list) else [shape]
    reply = engine.embed(input=shape).json()
    assert [item["embedding"] for item in reply["data"]] == [floats(engine.model.vector(t)) for t in lists]
    assert reply["usage"]["prompt_tokens"] == sum(map(len, lists))


def test_dimensions_cut_and_normalise(engine: Running) -> None:
    whole = engine.embed().json()["data"][0]["embedding"]
    cut = engine.embed(dimensions=3).json()["data"][0]["embedding"]
    norm = math.hypot(*whole[:3])
    assert cut == pytest.approx([value / norm for value in whole[:3]], abs=1e-6)
    assert engine.embed(dimensions=8).json()["data"][0]["embedding"] == whole


LONG = "w " * 20


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"input": ""}, 400, "input", r"input\[0\] is empty"),
        ({"input": []}, 400, "input", "input is empty"),
        ({"input": ["a", ""]}, 400, "input", r"input\[1\] is empty"),
        ({"input": [[]]}, 400, "input", r"input\[0\] is empty"),
        ({"input": None}, 400, "input", "must be a string"),
        ({"input": {"text": "a"}}, 400, "input", "must be a string"),
        ({"input": ["a", 1]}, 400, "input", "all strings or all lists"),
        ({"input": [True]}, 400, "input", "all strings or all lists"),
        ({"input": [1.5]}, 400, "input", "all strings or all lists"),
        ({"input": ["a"] * 2049}, 400, "input", "2049 items.*at most 2048"),
        ({"input": [1000]}, 400, "input", "token id 1000.*0 to 999"),
        ({"input": [-1]}, 400, "input", "token id -1"),
        ({"input": ["a", LONG]}, 400, "input", r"input\[1\] has 22 tokens; tiny takes at most 16"),
        ({"input": [1] * 17}, 400, "input", "has 17 tokens"),
        ({"dimensions": 9}, 400, "dimensions", "1 to 8"),
        ({"dimensions": 0}, 400, "dimensions", "1 to 8"),
        ({"dimensions": "8"}, 400, "dimensions", "Expected `int"),
        ({"encoding_format": "int8"}, 400, "encoding_format", "int8"),
        ({"model": "nobody"}, 404, "model", "'nobody' is not served here; this engine serves tiny, alias"),
        ({"model": None}, 400, "model", "Expected `str`"),
    ],
)
def test_faulty_requests_are_told_what_is_wrong(
    engine: Running, body: dict[str, Any], status: int, param: str, message: str
) -> None:
    reply = engine.embed(**body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert re.search(message, error["message"])
    assert engine.model.batches == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "tiny"}', b'{"model":"tiny","input":"\xff"}'])
def test_a_body_that_is_no_request_is_400(engine: Running, body: bytes) -> None:
    reply = engine.http.post("/v1/embeddings", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("given", ["text", "tokens"])
def test_truncate_cuts_what_is_too_long(engine: Running, given: str) -> None:
    reply = engine.embed(input=LONG if given == "text" else [1] * 20, truncate=True)
    assert reply.status_code == 200
    assert reply.json()["usage"]["prompt_tokens"] == 16


def test_what_the_framework_refuses_is_in_openai_shape_too(engine: Running) -> None:
    unknown = engine.http.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (404, "GET /v1/nothing: Not Found")
    wrong = engine.http.get("/v1/embeddings")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=DEADLINE)
    connection.putrequest("POST", "/v1/embeddings")
    connection.putheader("content-length", str(MAX_BODY_BYTES + 1))
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == 413
    assert json.loads(reply.read())["error"]["type"] == "invalid_request_error"
    connection.close()


def test_a_full_queue_is_429_and_health_answers_meanwhile(engine: Running) -> None:
    engine.model.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.embed, input=[[5]])
        assert engine.model.entered.wait(DEADLINE)
        second = pool.submit(engine.embed, input=[[5] * 10] * 10)
        until("a full queue", lambda: engine.batcher.queued_inputs == 10)
        refused = engine.embed()
        assert engine.http.get("/health").json() == {"status": "ok", "model": "tiny"}
        assert engine.metric("sage_embedding_queue_inputs") == 10
        assert engine.metric("sage_embedding_requests_running") == 2
        engine.model.gate.set()
        assert first.result().status_code == second.result().status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert engine.embed().status_code == 200


def test_a_client_that_leaves_takes_its_work_along(engine: Running) -> None:
    engine.model.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(engine.embed)
        assert engine.model.entered.wait(DEADLINE)
        leaver = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=DEADLINE)
        leaver.request("POST", "/v1/embeddings", json.dumps({"model": "tiny", "input": [[44]] * 9}))
        until("its inputs in the queue", lambda: engine.batcher.queued_inputs == 9)
        leaver.close()
        until("its inputs off the queue", lambda: engine.batcher.queued_inputs == 0)
        engine.model.gate.set()
        assert first.result().status_code == 200
    assert not any([44] in batch for batch in engine.model.batches)
    until("its count", lambda: engine.metric('sage_embedding_requests_total{status="499"}') == 1)


def test_a_failure_of_the_model_is_500_and_too_many_make_health_fail(engine: Running) -> None:
    for _ in range(BROKEN_AFTER):
        reply = engine.embed(input=[POISON])
        assert reply.status_code == 500
        assert reply.json()["error"]["type"] == "server_error"
        assert "input[0]: poison" in reply.json()["error"]["message"]
    health = engine.http.get("/health")
    assert health.status_code == 503
    assert "failed 8 times in a row" in health.json()["error"]["message"]
    assert engine.embed().status_code == 200
    assert engine.http.get("/health").status_code == 200


def test_models_lists_every_name(engine: Running) -> None:
    reply = engine.http.get("/v1/models").json()
    assert [model["id"] for model in reply["data"]] == ["tiny", "alias"]
    assert reply["data"][0]["max_model_len"] == 16


def test_metrics_count_what_happened_in_prometheus_text(engine: Running) -> None:
    engine.embed(input=["a", "b", "c c"])
    engine.embed(model="nobody")
    until("the counts", lambda: engine.metric('sage_embedding_requests_total{status="404"}') == 1)
    assert engine.metric('sage_embedding_requests_total{status="200"}') == 1
    assert engine.metric("sage_embedding_inputs_total") == 3
    assert engine.metric("sage_embedding_tokens_total") == 10
    assert engine.metric('sage_embedding_batch_size_bucket{le="2"}') == 0
    assert engine.metric('sage_embedding_batch_size_bucket{le="4"}') == 1
    assert engine.metric("sage_embedding_batch_size_count") == 1
    for line in engine.http.get("/metrics").text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]+"\})? [0-9.e+-]+', line), line
