"""Keys and their limits over HTTP, with a real engine behind: who may do what, and how much."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from gateway.keysource import KeyEntry, to_text
from sage_reconcile.secrets import key_digest
from tests.gateway.world import FakeEngine, Gateway, RecordingEngine, Script, backend, wait_for

LIMITS: dict[str, dict[str, object]] = {
    "any": {},
    "some": {"models": ("fake", "org/*")},
    "often": {"requests_per_minute": 60},
    "tokens": {"tokens_per_minute": 300},
    "single": {"max_concurrent": 1},
    "root": {"admin": True},
}


def secret(name: str) -> str:
    return f"sk-secret-of-{name}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    entries = [KeyEntry(name, key_digest(secret(name)), **given) for name, given in LIMITS.items()]  # type: ignore[arg-type]
    environ = {"SAGE_GATEWAY_KEYS": to_text(entries)}
    with Gateway(tmp_path_factory.mktemp("guarded"), environ=environ) as running:
        running.client.headers["authorization"] = f"Bearer {secret('root')}"
        yield running


@pytest.fixture(autouse=True)
def served(guarded: Gateway, engine: FakeEngine) -> Iterator[None]:
    one = [backend(engine.url)]
    guarded.serve({"fake": one, "org/large": one, "private": one})
    yield
    told = "".join(guarded.output)
    told += "".join(path.read_text() for path in (guarded.home / "logs").rglob("*") if path.is_file())
    assert "sk-secret" not in told
    assert "Traceback" not in told


def ask(guarded: Gateway, name: str, method: str, path: str, **more: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {secret(name)}"}
    reply = guarded.client.request(method, path, headers=headers, **more)  # type: ignore[arg-type]
    assert "sk-secret" not in reply.text + str(reply.headers)
    return reply


def chat(guarded: Gateway, name: str, model: str = "fake", **more: object) -> httpx.Response:
    return ask(guarded, name, "POST", "/v1/completions", json={"model": model, "prompt": "hi", **more})


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def test_a_key_uses_and_sees_its_models_alone(guarded: Gateway) -> None:
    assert [chat(guarded, "some", name).status_code for name in ("fake", "org/large")] == [200, 200]
    assert code(chat(guarded, "some", "private")) == (403, "model_not_allowed")
    listed = [model["id"] for model in ask(guarded, "some", "GET", "/v1/models").json()["data"]]
    assert listed == ["fake", "org/large"]
    assert ask(guarded, "some", "GET", "/v1/models/org/large").status_code == 200
    for reply in (ask(guarded, "some", "GET", "/v1/models/private"), chat(guarded, "some", "fakes")):
        assert code(reply) in [(404, "model_not_found"), (403, "model_not_allowed")]
        assert "org/large" in reply.json()["error"]["message"] or "org/*" in reply.json()["error"]["message"]
    assert "private" not in chat(guarded, "some", "fakes").text
    assert len(ask(guarded, "any", "GET", "/v1/models").json()["data"]) == 3


def test_who_may_administer(guarded: Gateway) -> None:
    def asked(name: str) -> list[int]:
        policy = {"json": {"policy": "stack"}}
        replies = [
            ask(guarded, name, "GET", "/admin/metrics"),
            ask(guarded, name, "POST", "/admin/set_policy", **policy),
        ]
        return [reply.status_code for reply in replies]

    assert (asked("nobody"), asked("any"), asked("root")) == ([401] * 2, [403] * 2, [200] * 2)
    assert code(chat(guarded, "nobody")) == (401, "invalid_api_key")
    assert httpx.get(f"{guarded.url}/metrics", trust_env=False).status_code == 401


def test_requests_a_minute_and_when_to_come_again(guarded: Gateway) -> None:
    """The SDK waits as long as it is told, and is let in."""
    refused = None
    while refused is None:
        reply = chat(guarded, "often")
        refused = reply if reply.status_code != 200 else None
    assert code(refused) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "1"
    with (
        httpx.Client(trust_env=False) as http,
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=secret("often"), http_client=http) as client,
    ):
        assert client.completions.create(model="fake", prompt="hi").choices


def test_tokens_are_counted_as_they_were_used(guarded: Gateway) -> None:
    """Each request reserves most of the minute, and uses two tokens."""
    assert [chat(guarded, "tokens", max_tokens=250).status_code for _ in range(3)] == [200] * 3
    refused = chat(guarded, "tokens", max_tokens=301)
    assert code(refused) == (429, "rate_limited")
    assert refused.headers["x-should-retry"] == "false"


def test_a_place_is_free_again_when_a_client_leaves(guarded: Gateway, recorder: RecordingEngine) -> None:
    recorder.script = Script(wait_for_client_to_leave=True)
    guarded.serve({"fake": [backend(recorder.url)], "other": []})
    with httpx.Client(base_url=guarded.url, trust_env=False) as first:
        first.headers["authorization"] = f"Bearer {secret('single')}"
        request = first.build_request("POST", "/v1/completions", json={"model": "fake"}, timeout=0.5)
        with pytest.raises(httpx.ReadTimeout):
            first.send(request)
    recorder.script = Script()
    wait_for(lambda: chat(guarded, "single").status_code == 200, "the place is free")
    recorder.script = Script(200, {"content-type": "text/event-stream"}, [b"data: {}\n\n", None])
    headers = {"authorization": f"Bearer {secret('single')}"}
    body = {"model": "fake"}
    with httpx.stream(
        "POST", f"{guarded.url}/v1/completions", json=body, headers=headers, trust_env=False
    ) as reply:
        chunks = reply.iter_raw()
        next(chunks)
        assert code(chat(guarded, "single")) == (429, "too_many_concurrent")
    recorder.script = Script()
    wait_for(lambda: chat(guarded, "single").status_code == 200, "the place is free again")
