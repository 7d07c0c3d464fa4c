"""The gateway as an OpenAI client sees it: the engine's own answers, byte for byte, as they come."""

import gzip
import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.gateway.world import FakeEngine, Gateway, RecordingEngine, Script, backend


@pytest.fixture(autouse=True)
def served(gateway: Gateway, engine: FakeEngine) -> None:
    one = [backend(engine.url)]
    gateway.serve({"fake": one, "org/alias": one})


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, http_client=http
    ) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}])
    assert reply.choices[0].message.content == "The capital of France is Paris."


def test_completion(client: openai.OpenAI) -> None:
    assert client.completions.create(model="org/alias", prompt="hi").choices[0].text.endswith("Paris.")


def test_chat_streamed(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with client.chat.completions.create(model="fake", messages=messages, stream=True) as stream:  # type: ignore[call-overload]
        words = [event.choices[0].delta.content for event in stream]
    assert "".join(words).strip() == "The capital of France is Paris."


def test_embeddings_as_floats_and_base64(gateway: Gateway, engine: FakeEngine, client: openai.OpenAI) -> None:
    # The SDK asks for base64 where nothing is said, and decodes it.
    decoded = client.embeddings.create(model="fake", input=["a", "b"]).data
    floats = client.embeddings.create(model="fake", input=["a", "b"], encoding_format="float").data
    assert [item.embedding for item in decoded] == [pytest.approx(item.embedding) for item in floats]
    body = {"model": "fake", "input": ["a"], "encoding_format": "base64"}
    through = gateway.client.post("/v1/embeddings", json=body)
    direct = httpx.post(f"{engine.url}/v1/embeddings", json=body, trust_env=False)
    assert through.content == direct.content
    assert isinstance(through.json()["data"][0]["embedding"], str)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "org/alias"]
    assert client.models.retrieve("org/alias").id == "org/alias"
    with pytest.raises(openai.NotFoundError, match="nothing-like-it"):
        client.models.retrieve("nothing-like-it")


def test_unknown_model_is_never_another_one(client: openai.OpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError, match=r"Did you mean 'org/alias'\?") as caught:
        client.embeddings.create(model="org/alais", input="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    reply = gateway.chat("org/alais")
    assert reply.status_code == 404
    assert reply.headers["x-sage-src"] == "sage"
    assert reply.json()["error"]["src"] == "sage"
    assert "fake, org/alias" in reply.json()["error"]["message"]


# Every byte that a JSON parser and printer would change: spaces, order, escapes, number forms, repeated keys.
ODD = (
    b'{ "temperature":1.0e-0,"z":[1,2 , 3],"model":"fake",'
    b'"a":"\\u00e9\xc3\xa9\\/","z":{},"n":12345678901234567890}\n'
)


def test_the_body_goes_on_untouched(gateway: Gateway, recorder: RecordingEngine) -> None:
    gateway.serve({"fake": [backend(recorder.url)]})
    gateway.client.post("/v1/chat/completions?api-version=1&x=%2F%20", content=ODD)
    assert recorder.requests[0].body == ODD
    assert recorder.requests[0].path == "/v1/chat/completions?api-version=1&x=%2F%20"


def test_an_alias_changes_only_the_name(gateway: Gateway, recorder: RecordingEngine) -> None:
    gateway.serve({"fake": [backend(recorder.url, model="org/Real é")]})
    gateway.client.post("/v1/chat/completions", content=ODD)
    assert recorder.requests[0].body == ODD.replace(b'"fake"', '"org/Real é"'.encode())


def test_a_form_passes(gateway: Gateway, recorder: RecordingEngine) -> None:
    gateway.serve({"whisper": [backend(recorder.url, model="org/whisper-1")]})
    sound = bytes(range(256)) * 100
    reply = gateway.client.post(
        "/v1/audio/transcriptions", data={"model": "whisper"}, files={"file": ("a.wav", sound)}
    )
    assert reply.status_code == 200
    assert sound in recorder.requests[0].body
    assert b"\r\n\r\norg/whisper-1\r\n" in recorder.requests[0].body


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses",
        "/v1/messages",
        "/v1/rerank",
        "/v1/score",
        "/tokenize",
        "/detokenize",
        "/v1/audio/speech",
    ],
)
def test_whatever_an_engine_offers(gateway: Gateway, engine: FakeEngine, path: str) -> None:
    echo = gateway.client.post(path, content=ODD).json()["echo"]
    assert (echo["path"], echo["body"]) == (path, ODD.decode())


def test_the_reply_comes_back_untouched(gateway: Gateway, recorder: RecordingEngine) -> None:
    packed = gzip.compress(b'{"a" :  1}')
    headers = {"content-type": "application/x-odd", "content-encoding": "gzip", "x-engine": "Kept"}
    recorder.script = Script(418, headers, [packed])
    gateway.serve({"fake": [backend(recorder.url)]})
    with gateway.client.stream("POST", "/v1/completions", content=ODD) as reply:
        assert b"".join(reply.iter_raw()) == packed
    assert reply.status_code == 418
    assert {name: reply.headers[name] for name in headers} == headers
    assert reply.headers["x-sage-src"] == "engine"


def test_a_stream_arrives_as_it_is_sent(gateway: Gateway, recorder: RecordingEngine) -> None:
    events = [b'data: {"n": 1}\n\n', b": comment\r\n\r\ndata: [DONE]\n\n"]
    recorder.script = Script(200, {"content-type": "text/event-stream"}, [events[0], None, events[1]])
    gateway.serve({"fake": [backend(recorder.url)]})
    with gateway.client.stream("POST", "/v1/completions", content=ODD) as reply:
        chunks = reply.iter_raw()
        assert next(chunks) == events[0]
        # Only now may the engine write its second event: who had waited for it had the first one too late.
        assert not recorder.go_on.is_set()
        recorder.go_on.set()
        assert b"".join(chunks) == events[1]
    assert reply.headers["content-type"] == "text/event-stream"


def test_an_engines_error_is_the_engines(gateway: Gateway) -> None:
    with FakeEngine("--error-status", "429") as failing:
        gateway.serve({"fake": [backend(failing.url)]})
        reply = gateway.chat()
    assert reply.status_code == 429
    assert reply.json() == {"error": {"message": "engine says no", "type": "engine_error"}}
    assert reply.headers["x-sage-src"] == "engine"


def test_headers(gateway: Gateway, recorder: RecordingEngine) -> None:
    gateway.serve({"fake": [backend(recorder.url)]})
    sent = {
        "authorization": "Bearer of-the-client",
        "x-api-key": "of-the-client",
        "cookie": "of-the-client",
        "connection": "close, x-hop",
        "x-hop": "one",
        "te": "trailers",
        "x-request-id": "mine-7",
        "x-kept": "yes",
        "traceparent": "00-1-2-3",
    }
    reply = gateway.client.post("/v1/completions", content=ODD, headers=sent)
    got = {name.lower(): value for name, value in recorder.requests[0].headers.items()}
    assert "of-the-client" not in str(got)
    assert not {"connection", "x-hop", "te"} & got.keys()
    assert (got["x-kept"], got["traceparent"], got["x-request-id"]) == ("yes", "00-1-2-3", "mine-7")
    assert got["host"] == recorder.url.removeprefix("http://")
    assert reply.headers["x-request-id"] == "mine-7"


def test_every_request_has_an_id(gateway: Gateway) -> None:
    made = {gateway.chat().headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    odd = gateway.client.get("/health", headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"] != "a b"
    assert gateway.client.get("/nope").headers["x-request-id"]


def test_an_external_backend_gets_its_own_key(
    recorder: RecordingEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    far = backend(f"{recorder.url}/prefix", api_key="${env:FAR_KEY}")
    unusable = backend(recorder.url, "lost#0", api_key="${env:NEVER_SET}")
    with Gateway(tmp_path_factory.mktemp("far"), environ={"FAR_KEY": "sk-far"}) as gateway:
        gateway.serve({"fake": [far], "lost": [unusable]})
        gateway.client.post("/v1/completions", content=ODD)
        reply = gateway.chat("lost")
    got = {name.lower(): value for name, value in recorder.requests[0].headers.items()}
    assert got["authorization"] == "Bearer sk-far"
    assert recorder.requests[0].path == "/prefix/v1/completions"
    assert reply.status_code == 503
    assert "NEVER_SET is not set" in reply.json()["error"]["message"]
    assert "sk-far" not in "".join(gateway.output)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b"{}", "missing_model"),
        (b'{"model":[]}', "invalid_model"),
    ],
)
def test_bad_requests(gateway: Gateway, body: bytes, code: str) -> None:
    reply = gateway.client.post("/v1/chat/completions", content=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)
    assert reply.json()["error"]["src"] == reply.headers["x-sage-src"] == "sage"


def test_a_body_over_the_limit(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Gateway(tmp_path_factory.mktemp("small"), "--max-body-mib", "1") as gateway:
        large = json.dumps({"model": "fake", "text": "x" * (1 << 20)}).encode()
        announced = gateway.client.post("/v1/completions", content=large)
        pieces = (large[at : at + 60_000] for at in range(0, len(large), 60_000))
        streamed = gateway.client.post("/v1/completions", content=pieces)
    assert (announced.status_code, streamed.status_code) == (413, 413)
    assert announced.json()["error"]["code"] == "body_too_large"


def test_a_large_body_passes(gateway: Gateway, recorder: RecordingEngine) -> None:
    gateway.serve({"fake": [backend(recorder.url)]})
    large = json.dumps({"model": "fake", "text": "x" * (20 << 20)}).encode()
    assert gateway.client.post("/v1/completions", content=large).status_code == 200
    assert recorder.requests[0].body == large


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v2/x", 404), ("PUT", "/v1/embeddings", 405)]
)
def test_paths_that_are_not_there(gateway: Gateway, method: str, path: str, status: int) -> None:
    reply = gateway.client.request(method, path)
    assert reply.status_code == status
    assert f"{method} {path}" in reply.json()["error"]["message"]
    assert reply.headers["x-sage-src"] == "sage"


def test_docs_load_nothing_from_elsewhere(gateway: Gateway) -> None:
    page = gateway.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text
    assert "://" not in page.text
    assert "/v1/rerank" in gateway.client.get("/schema/openapi.json").json()["paths"]
