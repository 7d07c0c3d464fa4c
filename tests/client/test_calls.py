"""Chat, text and vectors through a real gateway; the first reply of an engine is echoed in `raw`."""

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from sage_reconcile.client import (
    AsyncTextStream,
    EngineError,
    InferenceResult,
    RequestRejectedError,
    TextStream,
    UnifiedInferenceClient,
    UnknownModelError,
)
from sage_reconcile.client import requests as client_requests
from sage_reconcile.errors import PermanentError, ReconcileError
from tests.client.world import Service
from tests.gateway.world import REPOSITORY, FakeEngine, RecordingEngine, Script, wait_for

ANSWER = "The capital of France is Paris."


@pytest.fixture
def client(service: Service) -> Iterator[UnifiedInferenceClient]:
    with UnifiedInferenceClient.create(service.url) as made:
        yield made


def sent(result: InferenceResult) -> dict[str, Any]:
    """The request's body as the engine received it."""
    body: dict[str, Any] = json.loads(result.raw["echo"]["body"])
    return body


def headers(result: InferenceResult) -> dict[str, str]:
    """The request's headers as the engine received them, names in lower case."""
    return {name.lower(): value for name, value in result.raw["echo"]["headers"].items()}


def test_a_text_is_answered_by_the_default_model(client: UnifiedInferenceClient) -> None:
    assert client.chat("What is the capital of France?") == ANSWER


def test_a_text_becomes_one_message_of_the_user(client: UnifiedInferenceClient) -> None:
    asked = sent(client.chat("hi", return_result=True))
    assert asked == {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


def test_a_conversation_and_every_option_arrive_as_they_are(client: UnifiedInferenceClient) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    result = client.chat(
        messages,
        model="fake",
        temperature=0.0,
        max_tokens=7,
        return_result=True,
        tools=tools,
        user="u1",
        extra_body={"top_k": 3},
    )
    more = {"temperature": 0.0, "max_tokens": 7, "tools": tools, "user": "u1", "top_k": 3}
    assert sent(result) == {"model": "fake", "messages": messages, **more}


def test_headers_arrive(client: UnifiedInferenceClient) -> None:
    result = client.chat("hi", return_result=True, extra_headers={"X-Request-Priority": "HIGH"})
    assert headers(result)["x-request-priority"] == "HIGH"


def test_nothing_of_the_openai_environment_is_sent(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://secret-of-another-service")
    # The engine itself: a gateway would take the headers off.
    with UnifiedInferenceClient.create(service.chat_url) as made:
        result = made.chat("hi", return_result=True)
    assert "secret-of-another-service" not in str(headers(result))
    assert "authorization" not in headers(result)


def test_a_result_tells_what_it_cost(client: UnifiedInferenceClient) -> None:
    result = client.chat("hi", return_result=True)
    assert (result.content, result.model, result.finish_reason) == (ANSWER, "fake", "stop")
    assert result.usage == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    assert result.latency_ms > 0


def test_a_stream_gives_the_pieces_of_the_answer(client: UnifiedInferenceClient) -> None:
    pieces = client.chat("hi", stream=True)
    assert isinstance(pieces, TextStream)
    assert list(pieces) == [f"{word} " for word in ANSWER.split()]


def test_a_stream_comes_as_the_engine_makes_it_and_leaving_it_ends_the_work(stack: ExitStack) -> None:
    engine = stack.enter_context(FakeEngine("--answer", "word " * 2000, "--chunk-delay", "0.05"))
    made = stack.enter_context(UnifiedInferenceClient.create(engine.url))
    for piece in made.chat("hi", stream=True):
        assert piece == "word "
        assert engine.running() == 1
        break
    # Its whole answer takes longer than this waits.
    wait_for(lambda: engine.running() == 0, "the engine's work ends when the stream is left")


def test_a_stream_can_be_closed_before_it_was_read(stack: ExitStack) -> None:
    engine = stack.enter_context(FakeEngine("--answer", "word " * 2000, "--chunk-delay", "0.05"))
    made = stack.enter_context(UnifiedInferenceClient.create(engine.url))
    with made.chat("hi", stream=True) as pieces:
        pass
    assert list(pieces) == []
    wait_for(lambda: engine.running() == 0, "the engine's work ends when the stream is closed")


def test_generate_continues_a_prompt_without_a_chat_template(client: UnifiedInferenceClient) -> None:
    result = client.generate("Once upon", max_tokens=3, return_result=True)
    assert result.raw["echo"]["path"] == "/v1/completions"
    assert sent(result) == {"model": "fake", "prompt": "Once upon", "max_tokens": 3}
    assert client.generate("Once upon") == ANSWER
    assert "".join(client.generate("Once upon", stream=True)) == f"{ANSWER} "


def test_vectors_come_in_the_order_of_their_texts(client: UnifiedInferenceClient) -> None:
    first, second = client.embed(["a", "b"])
    assert client.embed("b") == [second]
    assert client.embed(["b", "a"]) == [second, first]
    assert first != second
    assert math.isclose(sum(value * value for value in first), 1.0, rel_tol=1e-5)
    assert all(type(value) is float for value in first)


def test_no_text_is_no_request(client: UnifiedInferenceClient) -> None:
    assert client.embed([]) == []


def test_many_texts_go_in_parts(client: UnifiedInferenceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_requests, "EMBED_BATCH", 2)
    texts = ["a", "b", "c", "d", "e"]
    assert [len(request.arguments["input"]) for request in client_requests.embed_requests(texts)] == [2, 2, 1]
    assert client.embed(texts) == [client.embed(text)[0] for text in texts]


def test_the_asynchronous_twins_answer_the_same(service: Service) -> None:
    async def ask() -> None:
        async with UnifiedInferenceClient.create(service.url) as made:
            assert await made.achat("hi") == ANSWER
            assert (await made.achat("hi", return_result=True)).finish_reason == "stop"
            assert await made.agenerate("hi") == ANSWER
            pieces = await made.achat("hi", stream=True)
            assert isinstance(pieces, AsyncTextStream)
            assert [piece async for piece in pieces] == [f"{word} " for word in ANSWER.split()]
            assert await made.aembed(["a", "b"]) == made.embed(["a", "b"])
            assert await asyncio.gather(*(made.achat("hi") for _ in range(20))) == [ANSWER] * 20

    asyncio.run(ask())


def test_an_asynchronous_stream_that_is_closed_ends_the_work(stack: ExitStack) -> None:
    engine = stack.enter_context(FakeEngine("--answer", "word " * 2000, "--chunk-delay", "0.05"))

    async def ask() -> None:
        async with UnifiedInferenceClient.create(engine.url) as made:
            async with await made.achat("hi", stream=True) as pieces:
                assert await anext(pieces) == "word "
            await asyncio.to_thread(wait_for, lambda: engine.running() == 0, "the work ends")

    asyncio.run(ask())


def test_a_client_serves_one_event_loop_after_another(service: Service) -> None:
    script = (
        "import asyncio, sys\n"
        "from sage.llm import UnifiedInferenceClient\n"
        "client = UnifiedInferenceClient.create(sys.argv[1])\n"
        "for _ in range(3):\n"
        "    print(asyncio.run(client.achat('hi')))\n"
    )
    # In a process of its own, as connections of a loop that has ended are the interpreter's to close.
    command = [sys.executable, "-W", "ignore", "-c", script, service.url]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.stdout.splitlines(), done.stderr) == ([ANSWER] * 3, "")


def test_an_unknown_model_is_an_error_and_never_another_model(client: UnifiedInferenceClient) -> None:
    with pytest.raises(UnknownModelError, match=r"'fakee' is not served here\. Did you mean 'fake'\?"):
        client.chat("hi", model="fakee")


def test_a_rejected_request_says_what_the_engine_says(stack: ExitStack) -> None:
    engine = stack.enter_context(FakeEngine("--no-chat"))
    made = stack.enter_context(UnifiedInferenceClient.create(engine.url))
    with pytest.raises(RequestRejectedError, match=r"answered 400 .*this model has no chat template") as told:
        made.chat("hi")
    assert told.value.status == 400
    assert isinstance(told.value, PermanentError)


def test_a_failing_engine_is_a_transient_error(stack: ExitStack) -> None:
    engine = stack.enter_context(FakeEngine("--error-status", "503"))
    made = stack.enter_context(UnifiedInferenceClient.create(engine.url))
    with pytest.raises(EngineError, match=r"answered 503 .*engine says no") as told:
        made.chat("hi")
    assert told.value.status == 503


def test_a_retry_after_is_the_delay(stack: ExitStack) -> None:
    engine = stack.enter_context(RecordingEngine())
    json_kind = {"content-type": "application/json"}
    engine.script = Script(429, {**json_kind, "retry-after": "7"}, [b'{"error": {"message": "slowly"}}'])
    made = stack.enter_context(UnifiedInferenceClient.create(engine.url))
    with pytest.raises(EngineError, match="slowly") as told:
        made.chat("hi", model="m")
    assert told.value.delay == 7.0
    assert len(engine.requests) == 1


def test_silence_is_a_timeout_and_is_not_sent_again(stack: ExitStack) -> None:
    engine = stack.enter_context(RecordingEngine())
    engine.script = Script(chunks=[None])
    made = stack.enter_context(UnifiedInferenceClient.create(engine.url, timeout=0.3))
    with pytest.raises(EngineError, match=r"sent nothing for 0\.3 s on a request for 'm'; .*timeout="):
        made.chat("hi", model="m")
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("application/json", b"[]"),
        ("application/json", b"<html>"),
        ("text/html", b"<html>"),
        ("application/json", b'{"choices": []}'),
        ("application/json", b'{"choices": null, "data": null}'),
        ("application/json", b'{"choices": [1], "data": [1]}'),
        ("application/json", b'{"choices": [{}], "data": [{}]}'),
        ("application/json", b'{"choices": 1, "data": [{"index": 0, "embedding": "not base64"}]}'),
    ],
)
def test_an_answer_that_is_none_is_an_error(stack: ExitStack, kind: str, body: bytes) -> None:
    engine = stack.enter_context(RecordingEngine())
    engine.script = Script(headers={"content-type": kind}, chunks=[body])
    made = stack.enter_context(UnifiedInferenceClient.create(engine.url))
    for ask in (made.chat, made.embed, made.generate):
        with pytest.raises(EngineError, match=engine.url):
            ask("hi", model="m")  # type: ignore[operator]


def test_too_few_vectors_are_an_error(stack: ExitStack) -> None:
    engine = stack.enter_context(RecordingEngine())
    engine.script = Script(chunks=[b'{"data": [{"index": 0, "embedding": [1.0]}]}'])
    made = stack.enter_context(UnifiedInferenceClient.create(engine.url))
    with pytest.raises(EngineError, match="one vector for each of 2 texts"):
        made.embed(["a", "b"], model="m")


@pytest.mark.parametrize("wrong", [{"role": "user", "content": "hi"}, ["hi"], [["user", "hi"]]])
def test_messages_of_a_wrong_form_are_told(client: UnifiedInferenceClient, wrong: Any) -> None:
    with pytest.raises(TypeError, match="messages must be a text or a list like"):
        client.chat(wrong)


def test_texts_of_a_wrong_form_are_told(client: UnifiedInferenceClient) -> None:
    with pytest.raises(TypeError, match=r"texts must be a text or a list of texts; it has NoneType, int"):
        client.embed(["a", 1, None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="prompt must be a text, not list"):
        client.generate(["a"])  # type: ignore[call-overload]


def test_a_stream_has_no_result(client: UnifiedInferenceClient) -> None:
    with pytest.raises(TypeError, match="choose one"):
        client.chat("hi", stream=True, return_result=True)  # type: ignore[call-overload]


def test_create_is_the_only_constructor() -> None:
    with pytest.raises(TypeError, match=r"UnifiedInferenceClient\.create\(\)"):
        UnifiedInferenceClient()


def test_embedded_is_said_not_to_be_there_yet() -> None:
    with pytest.raises(PermanentError, match=r"embedded=True is not available .*sage gateway start"):
        UnifiedInferenceClient.create(embedded=True)


def test_a_missing_openai_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(PermanentError, match=r"pip install 'sage-reconcile\[client\]'"):
        UnifiedInferenceClient.create("http://127.0.0.1:9")


def test_a_closed_client_says_so(service: Service) -> None:
    made = UnifiedInferenceClient.create(service.url)
    made.close()
    with pytest.raises(ReconcileError, match="is closed"):
        made.chat("hi")
