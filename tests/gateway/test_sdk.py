"""The official SDK against the gateway, as it comes: every kind of call, every kind of error, its retries."""

import asyncio
import io
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.world import FakeEngine, Gateway, RecordingEngine, Script, backend, wait_for

ANSWER = "The capital of France is Paris."
ASKED: Any = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def served(gateway: Gateway, engine: FakeEngine) -> None:
    gateway.serve({"fake": [backend(engine.url)]})


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with sdk(gateway) as made:
        yield made


def sdk(gateway: Gateway, retries: int = 0) -> openai.OpenAI:
    http = httpx.Client(trust_env=False)
    return openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key="unused", max_retries=retries, http_client=http
    )


def test_a_stream_with_its_usage(client: openai.OpenAI) -> None:
    events = list(
        client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(event.choices[0].delta.content for event in events[:-1]).strip() == ANSWER
    assert events[-1].usage.total_tokens == len(ANSWER.split()) + 1


def test_a_completion_streamed(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="fake", prompt="hi", stream=True)
    assert "".join(event.choices[0].text for event in stream).strip() == ANSWER


def test_responses(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="fake", input="hi")
    assert reply.output_text == ANSWER
    assert reply.usage is not None
    assert reply.usage.total_tokens == 2


def test_sound_is_uploaded(gateway: Gateway, engine: FakeEngine, client: openai.OpenAI) -> None:
    """By an alias, too: the form's own field is what the engine goes by."""
    gateway.serve({"whisper-1": [backend(engine.url)]})
    sound = io.BytesIO(bytes(range(256)) * 200)
    reply = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound))
    assert reply.text == ANSWER


def test_without_waiting_for_each_other(gateway: Gateway) -> None:
    async def ask() -> list[str]:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", http_client=http) as client,
        ):
            chat = client.chat.completions.create(**ASKED)
            embedded = client.embeddings.create(model="fake", input=["a", "b"])
            responded = client.responses.create(model="fake", input="hi")
            listed = client.models.list()
            replies = await asyncio.gather(chat, embedded, responded, listed)
            words = [
                event.choices[0].delta.content
                async for event in await client.chat.completions.create(**ASKED, stream=True)
            ]
        assert len(replies[1].data[0].embedding) == 8
        return [replies[0].choices[0].message.content, replies[2].output_text, "".join(words).strip()]

    assert asyncio.run(ask()) == [ANSWER] * 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
def test_an_engines_error_has_its_class(
    gateway: Gateway, recorder: RecordingEngine, client: openai.OpenAI, status: int, kind: type[Exception]
) -> None:
    said = b'{"error": {"message": "engine says no", "type": "x", "code": "odd"}}'
    recorder.script = Script(status, chunks=[said])
    gateway.serve({"fake": [backend(recorder.url)]})
    with pytest.raises(kind, match="engine says no"):
        client.chat.completions.create(**ASKED)


def test_sages_own_errors_have_their_classes(gateway: Gateway, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**{**ASKED, "model": "nothing-like-it"})
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**{**ASKED, "model": ""})
    assert wrong.value.code == "missing_model"
    gateway.serve({"fake": [backend("http://127.0.0.1:9", state="pending")]})
    with pytest.raises(openai.InternalServerError) as away:
        client.chat.completions.create(**ASKED)
    assert (away.value.status_code, away.value.code) == (503, "no_ready_backend")
    assert away.value.request_id == away.value.response.headers["x-request-id"]


def test_the_sdk_comes_again_when_it_is_told(gateway: Gateway, engine: FakeEngine, stack: ExitStack) -> None:
    """503 with Retry-After while no engine is ready: one call of the client's, answered in the end."""
    gateway.serve({"fake": [backend(engine.url, state="pending")]})
    tries: list[int] = []

    def on_reply(reply: httpx.Response) -> None:
        tries.append(reply.status_code)
        if len(tries) == 1:
            gateway.serve({"fake": [backend(engine.url)]})

    http = stack.enter_context(httpx.Client(trust_env=False, event_hooks={"response": [on_reply]}))
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=3, http_client=http)
    assert client.chat.completions.create(**ASKED).choices[0].message.content == ANSWER
    assert tries == [503, 200]


def test_who_stops_reading_a_stream_ends_the_engines_work(gateway: Gateway, stack: ExitStack) -> None:
    slow = stack.enter_context(FakeEngine("--answer", "word " * 5000, "--chunk-delay", "0.05"))
    gateway.serve({"fake": [backend(slow.url)]})
    with sdk(gateway) as client, client.chat.completions.create(**ASKED, stream=True) as stream:
        next(iter(stream))
    wait_for(lambda: slow.running() == 0, "the engine's work ends")
