"""What the fake model server answers, encoded once: replies, and the parts that its streams are made of."""

import json
from collections.abc import Callable
from functools import lru_cache

MODEL = "mock-model"
CREATED = 1_700_000_000
JSON_BYTES = 600
EVENT_BYTES = 220
"""About what vLLM sends for one token."""

TIME = 19 * "0"
"""Where paced events say when they were written."""

DONE = b"data: [DONE]\n\n"
_WORDS = "The quick brown fox jumps over the lazy dog. "
_ID = "chatcmpl-mockmockmockmockmockmock"
_USAGE = {"prompt_tokens": 12, "completion_tokens": 64, "total_tokens": 76}


def filler(size: int) -> str:
    return (_WORDS * (size // len(_WORDS) + 1))[:size]


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def response(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _reply(kind: str, choice: Callable[[str], dict[str, object]]) -> bytes:
    """A JSON reply of about JSON_BYTES."""

    def build(text: str) -> bytes:
        about = {"id": _ID, "object": kind, "created": CREATED, "model": MODEL}
        last = {"logprobs": None, "finish_reason": "stop"}
        return _compact({**about, "choices": [{"index": 0, **choice(text), **last}], "usage": _USAGE})

    return response(build(filler(max(1, JSON_BYTES - len(build(""))))))


CHAT = _reply("chat.completion", lambda text: {"message": {"role": "assistant", "content": text}})
COMPLETION = _reply("text_completion", lambda text: {"text": text})
EMBEDDING = response(
    _compact(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [round(0.001 * i, 3) for i in range(64)]}
            ],
            "model": MODEL,
            "usage": {"prompt_tokens": 12, "total_tokens": 12},
        }
    )
)
MODELS = response(
    _compact(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "created": CREATED, "owned_by": "mock"}]}
    )
)
SERVER_INFO = response(_compact({"model_path": MODEL, "served_model_name": MODEL}))
HEALTH = response(b"", kind="text/plain")
NOT_FOUND = response(b'{"error":{"message":"not found","code":404}}', "404 Not Found")

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(is_chat: bool, text: str, is_last: bool) -> bytes:
    content = ({} if is_last else {"content": text}) if is_chat else "" if is_last else text
    choice = {
        "index": 0,
        "delta" if is_chat else "text": content,
        "logprobs": None,
        "finish_reason": "stop" if is_last else None,
    }
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    event = {"id": _ID, "object": kind, "created": CREATED, "model": MODEL, "choices": [choice]}
    return b"data: " + _compact(event) + b"\n\n"


@lru_cache(maxsize=16)
def stream_parts(is_chat: bool, events: int) -> tuple[bytes, ...]:
    """HTTP chunks: one for each event, the last with the end of the stream."""
    start = f"t={TIME} "
    size = EVENT_BYTES - len(_event(is_chat, start, False))
    middle = http_chunk(_event(is_chat, start + filler(max(0, size)), False))
    return (middle,) * (events - 1) + (_end(is_chat),)


def _end(is_chat: bool) -> bytes:
    return http_chunk(_event(is_chat, "", True)) + http_chunk(DONE) + STREAM_END


@lru_cache(maxsize=2)
def timed_event(is_chat: bool) -> tuple[bytes, bytes]:
    """What stands before and after the time in an encoded HTTP chunk."""
    before, _, after = stream_parts(is_chat, 2)[0].partition(TIME.encode())
    return before, after


@lru_cache(maxsize=64)
def stream_bursts(is_chat: bool, events: int, burst: int) -> tuple[bytes, ...]:
    """The stream as it is handed to the socket, `burst` events a write."""
    parts = stream_parts(is_chat, events)
    bursts = [b"".join(parts[at : at + burst]) for at in range(0, len(parts), burst)]
    return (STREAM_HEAD + bursts[0], *bursts[1:])


def own_events(is_chat: bool, events: int, number: int) -> list[bytes]:
    """A stream that no other number has: each event says whose it is, of a size of its own."""
    sizes = ((number * 7 + event * 31) % 300 for event in range(events - 1))
    texts = (f"s={number:08d} e={event} {filler(size)}" for event, size in enumerate(sizes))
    return [*(_event(is_chat, text, False) for text in texts), _event(is_chat, "", True), DONE]


def own_parts(is_chat: bool, events: int, number: int) -> list[bytes]:
    """That stream as HTTP chunks; the last part ends it."""
    chunks = [http_chunk(event) for event in own_events(is_chat, events, number)]
    return [*chunks[:-2], b"".join(chunks[-2:]) + STREAM_END]
