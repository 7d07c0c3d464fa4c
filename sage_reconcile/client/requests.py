"""What is asked and what is answered, as values; the openai package's own shapes end here."""

import base64
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from sage_reconcile.client.errors import EngineError
from sage_reconcile.model.desired import Kind

Message = Mapping[str, Any]

# OpenAI's limit of one request, which sage's embedding engine keeps to; longer lists are sent in parts.
EMBED_BATCH = 2048

# Vectors travel as bytes, a quarter of their text. Said outright, as the package else decodes them itself and
# fails in its own words at a reply that has none; an engine may send plain lists all the same.
_COMPACT = {"encoding_format": "base64"}
# What reading a reply raises where that is not of OpenAI's form: the package does not check it.
_MALFORMED = (AttributeError, IndexError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """A whole answer. `usage` counts tokens (prompt_tokens, completion_tokens, total_tokens), {} if not told.

    `latency_ms` is what the caller waited, tries included. `raw` is the reply as it came: all choices, tool
    calls, log probabilities, citations.
    """

    content: str
    model: str
    usage: dict[str, int]
    latency_ms: float
    finish_reason: str | None
    raw: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the openai package: `resource` is its dotted name there, `text_of` reads a choice."""

    kind: Kind
    resource: str
    arguments: dict[str, Any]
    text_of: Callable[[Any], str | None] = str
    headers: Mapping[str, str] = field(default_factory=dict)

    def send(self, sdk: Any, model: str, headers: Mapping[str, Any]) -> Any:
        """Calls it; an asynchronous client of the package gives an awaitable."""
        arguments = {**self.arguments, "extra_headers": {**headers, **self.headers}}
        return attrgetter(self.resource)(sdk).create(model=model, **arguments)

    def streamed(self) -> "Request":
        """The same, answered piece by piece."""
        return replace(self, arguments={**self.arguments, "stream": True})

    def piece(self, event: Any) -> str:
        """The text of one streamed event, "" if it brings none."""
        try:
            return self.text_of(event.choices[0]) or ""
        except _MALFORMED:  # a last event tells the usage alone
            return ""

    def result(self, reply: Any, url: str, latency_ms: float) -> InferenceResult:
        """Raises EngineError if the reply has no answer."""
        try:
            choice = reply.choices[0]
            counts = reply.usage.to_dict() if reply.usage else {}
            return InferenceResult(
                content=self.text_of(choice) or "",
                model=getattr(reply, "model", None) or "",
                usage={name: count for name, count in counts.items() if isinstance(count, int)},
                latency_ms=latency_ms,
                finish_reason=choice.finish_reason,
                raw=reply.to_dict(),
            )
        except _MALFORMED as error:
            raise _no_answer(url, "a choice", reply) from error

    def vectors(self, reply: Any, url: str) -> list[list[float]]:
        """Raises EngineError if there is not one vector for each text."""
        count = len(self.arguments["input"])
        try:
            items = sorted(reply.data, key=attrgetter("index"))
            vectors = [_floats(item.embedding) for item in items]
        except _MALFORMED as error:
            raise _no_answer(url, "vectors", reply) from error
        if len(vectors) != count:
            raise _no_answer(url, f"one vector for each of {count} texts", reply)
        return vectors


def chat_request(messages: str | Sequence[Message], options: dict[str, Any]) -> Request:
    """Raises TypeError for messages that are neither a text nor a list of messages."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping) or not all(isinstance(message, Mapping) for message in messages):
        raise TypeError(
            'messages must be a text or a list like [{"role": "user", "content": "Hello"}], '
            f"not {type(messages).__name__}"
        )
    headers = options.pop("extra_headers", None) or {}
    arguments = {"messages": [dict(message) for message in messages], **_body(options)}
    return Request(Kind.LLM, "chat.completions", arguments, _chat_text, headers)


def generate_request(prompt: str, options: dict[str, Any]) -> Request:
    """Raises TypeError for a prompt that is no text."""
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be a text, not {type(prompt).__name__}; chat() takes messages")
    headers = options.pop("extra_headers", None) or {}
    arguments = {"prompt": prompt, **_body(options)}
    return Request(Kind.LLM, "completions", arguments, _completion_text, headers)


def embed_requests(texts: str | Sequence[str]) -> list[Request]:
    """One request for each part of the texts. Raises TypeError for what is no text."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    wrong = [type(text).__name__ for text in listed if not isinstance(text, str)]
    if wrong:
        raise TypeError(f"texts must be a text or a list of texts; it has {', '.join(sorted(set(wrong)))}")
    parts = [listed[at : at + EMBED_BATCH] for at in range(0, len(listed), EMBED_BATCH)]
    return [Request(Kind.EMBEDDING, "embeddings", {"input": part, **_COMPACT}) for part in parts]


def _body(options: dict[str, Any]) -> dict[str, Any]:
    """Every option goes into the request's body as it is: what an engine takes is not judged here."""
    body = {name: value for name, value in options.items() if value is not None}
    body |= body.pop("extra_body", {})
    return {"extra_body": body} if body else {}


def _floats(embedding: str | Sequence[float]) -> list[float]:
    """A vector from a list, or from base64 of little-endian 32-bit floats."""
    if not isinstance(embedding, str):
        return [float(value) for value in embedding]
    values = array("f")
    values.frombytes(base64.b64decode(embedding, validate=True))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def _chat_text(choice: Any) -> str | None:
    said = getattr(choice, "delta", None) or choice.message
    content: str | None = said.content  # None where the answer is a tool call
    return content


def _completion_text(choice: Any) -> str:
    if not isinstance(choice.text, str):
        raise TypeError("no text")
    return choice.text


def _no_answer(url: str, wanted: str, reply: Any) -> EngineError:
    return EngineError(f"{url} answered without {wanted}: {str(reply)[:200]}")
