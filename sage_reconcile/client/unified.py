"""UnifiedInferenceClient: one object for chat, text and vectors, synchronous and asynchronous."""

import os
from collections.abc import Sequence
from typing import Any, Literal, Self, overload

from sage_reconcile.client.channel import Channel
from sage_reconcile.client.discovery import Endpoint
from sage_reconcile.client.requests import (
    InferenceResult,
    Message,
    Request,
    chat_request,
    embed_requests,
    generate_request,
)
from sage_reconcile.client.sdk import require_sdk
from sage_reconcile.client.settings import Settings
from sage_reconcile.client.streams import AsyncTextStream, TextStream
from sage_reconcile.errors import PermanentError
from sage_reconcile.model.desired import Kind

Messages = str | Sequence[Message]
Texts = str | Sequence[str]
Answer = str | TextStream | InferenceResult
AsyncAnswer = str | AsyncTextStream | InferenceResult
No = Literal[False]
Yes = Literal[True]
_MADE_BY_CREATE = object()


class UnifiedInferenceClient:
    """Chat, text and vectors from the local gateway, a given one, or engines found on their ports.

    Made by `create()` only. Safe to share between threads and tasks. Any further keyword of `chat` and
    `generate` (top_p, tools, session_id, ...) goes into the request's body as it is; `extra_headers` are sent
    as headers. Every fault is one of `sage_reconcile.client`'s errors, whose text says what to do.
    """

    def __init__(self, settings: Settings | None = None, made_by: object = None) -> None:
        if made_by is not _MADE_BY_CREATE or settings is None:
            raise TypeError("make a client by UnifiedInferenceClient.create(), not by calling the class")
        self._channel = Channel(settings)

    @classmethod
    def create(
        cls,
        control_plane_url: str | None = None,
        embedded: bool = False,
        default_llm_model: str | None = None,
        default_embedding_model: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
    ) -> Self:
        """A client of `control_plane_url`, else of SAGE_UNIFIED_BASE_URL, else of what runs on this machine:
        its gateway (SAGE_GATEWAY_PORT or 8000), else engines on ports 8901-8999 and 8090-8199.

        A given URL is first asked by the first request; without one, what runs is looked for at once.
        Default models: the arguments, SAGE_UNIFIED_MODEL, else the first of the kind that is listed as ready.
        `timeout` is how many seconds a server may send nothing. Raises NoBackendError if nothing is found,
        PermanentError for a setting that cannot be and where the openai package is missing.
        """
        if embedded:
            raise PermanentError(
                "embedded=True is not available in this version: the control plane cannot run in this "
                "process yet. Leave it out and run the gateway: `sage apply`, then `sage gateway start`"
            )
        require_sdk()
        models = {Kind.LLM: default_llm_model, Kind.EMBEDDING: default_embedding_model}
        settings = Settings.of(os.environ, control_plane_url, api_key, models, timeout)
        client = cls(settings, _MADE_BY_CREATE)
        if not settings.url:
            client._channel.backends.refresh()
        return client

    @property
    def backends(self) -> tuple[Endpoint, ...]:
        """What was found last: one gateway, or engines. () while nothing had to be looked for."""
        return self._channel.backends.endpoints

    @overload
    def chat(
        self, messages: Messages, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, stream: No = False, return_result: No = False, **options: Any,
    ) -> str: ...  # fmt: skip
    @overload
    def chat(
        self, messages: Messages, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, *, stream: Yes, return_result: No = False, **options: Any,
    ) -> TextStream: ...  # fmt: skip
    @overload
    def chat(
        self, messages: Messages, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, stream: No = False, *, return_result: Yes, **options: Any,
    ) -> InferenceResult: ...  # fmt: skip
    def chat(
        self,
        messages: Messages,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        return_result: bool = False,
        **options: Any,
    ) -> Answer:
        """The answer to a text or to a conversation in OpenAI's form: its text, an InferenceResult with
        `return_result`, or with `stream` its text piece by piece as the engine makes it."""
        body = {"temperature": temperature, "max_tokens": max_tokens, **options}
        return self._answer(chat_request(messages, body), model, stream, return_result)

    @overload
    async def achat(
        self, messages: Messages, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, stream: No = False, return_result: No = False, **options: Any,
    ) -> str: ...  # fmt: skip
    @overload
    async def achat(
        self, messages: Messages, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, *, stream: Yes, return_result: No = False, **options: Any,
    ) -> AsyncTextStream: ...  # fmt: skip
    @overload
    async def achat(
        self, messages: Messages, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, stream: No = False, *, return_result: Yes, **options: Any,
    ) -> InferenceResult: ...  # fmt: skip
    async def achat(
        self,
        messages: Messages,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        return_result: bool = False,
        **options: Any,
    ) -> AsyncAnswer:
        """As chat(); with `stream`, `async for piece in await client.achat(..., stream=True)`."""
        body = {"temperature": temperature, "max_tokens": max_tokens, **options}
        return await self._aanswer(chat_request(messages, body), model, stream, return_result)

    @overload
    def generate(
        self, prompt: str, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, stream: No = False, return_result: No = False, **options: Any,
    ) -> str: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: str, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, *, stream: Yes, return_result: No = False, **options: Any,
    ) -> TextStream: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: str, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, stream: No = False, *, return_result: Yes, **options: Any,
    ) -> InferenceResult: ...  # fmt: skip
    def generate(
        self,
        prompt: str,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        return_result: bool = False,
        **options: Any,
    ) -> Answer:
        """The text that continues `prompt`, which is given to the model as it is, without a chat template."""
        body = {"temperature": temperature, "max_tokens": max_tokens, **options}
        return self._answer(generate_request(prompt, body), model, stream, return_result)

    @overload
    async def agenerate(
        self, prompt: str, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, stream: No = False, return_result: No = False, **options: Any,
    ) -> str: ...  # fmt: skip
    @overload
    async def agenerate(
        self, prompt: str, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, *, stream: Yes, return_result: No = False, **options: Any,
    ) -> AsyncTextStream: ...  # fmt: skip
    @overload
    async def agenerate(
        self, prompt: str, model: str | None = None, temperature: float | None = None,
        max_tokens: int | None = None, stream: No = False, *, return_result: Yes, **options: Any,
    ) -> InferenceResult: ...  # fmt: skip
    async def agenerate(
        self,
        prompt: str,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        return_result: bool = False,
        **options: Any,
    ) -> AsyncAnswer:
        """As generate(), asynchronous."""
        body = {"temperature": temperature, "max_tokens": max_tokens, **options}
        return await self._aanswer(generate_request(prompt, body), model, stream, return_result)

    def embed(self, texts: Texts, model: str | None = None) -> list[list[float]]:
        """One vector for each text, in their order; a single text gives a list of one vector."""
        parts = [self._channel.vectors(request, model) for request in embed_requests(texts)]
        return [vector for part in parts for vector in part]

    async def aembed(self, texts: Texts, model: str | None = None) -> list[list[float]]:
        """As embed(), asynchronous."""
        parts = [await self._channel.avectors(request, model) for request in embed_requests(texts)]
        return [vector for part in parts for vector in part]

    def close(self) -> None:
        """Ends the connections of the synchronous methods; those of the asynchronous ones end by aclose()."""
        self._channel.sdk.close()

    async def aclose(self) -> None:
        """Ends all connections; to be called in the event loop that made the asynchronous calls."""
        await self._channel.sdk.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _answer(self, request: Request, model: str | None, stream: bool, return_result: bool) -> Answer:
        _check_form(stream, return_result)
        if stream:
            return self._channel.stream(request.streamed(), model)
        result = self._channel.answer(request, model)
        return result if return_result else result.content

    async def _aanswer(
        self, request: Request, model: str | None, stream: bool, return_result: bool
    ) -> AsyncAnswer:
        _check_form(stream, return_result)
        if stream:
            return await self._channel.astream(request.streamed(), model)
        result = await self._channel.aanswer(request, model)
        return result if return_result else result.content


def _check_form(stream: bool, return_result: bool) -> None:
    if stream and return_result:
        raise TypeError("stream=True gives pieces of text, return_result=True a whole answer: choose one")
