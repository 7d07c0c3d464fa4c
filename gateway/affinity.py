"""What a request has in common with others: its session, or the beginning of its prompt. Pure."""

import json
import re
from collections.abc import Iterable

import msgspec

# An engine keeps the beginning of a prompt in blocks of a few dozen bytes: this much tells prompts apart.
PREFIX_BYTES = 256

SESSION_HEADER = b"x-session-id"

_SEPARATOR = re.compile(r"[ \t\n\r,]*")
_DECODER = json.JSONDecoder(strict=False)
_NO = msgspec.Raw()


class _Prompt(msgspec.Struct):
    """The fields that a prompt begins with, of every OpenAI path and of /v1/messages."""

    system: msgspec.Raw = _NO
    instructions: msgspec.Raw = _NO
    messages: msgspec.Raw = _NO
    prompt: msgspec.Raw = _NO
    input: msgspec.Raw = _NO


class _Session(msgspec.Struct):
    session_id: msgspec.Raw = _NO
    user: msgspec.Raw = _NO


_PROMPT = msgspec.json.Decoder(_Prompt)
_SESSION = msgspec.json.Decoder(_Session)


def prefix_key(body: bytes) -> bytes:
    """The beginning of the prompt of a JSON body, b"" where there is none.

    A conversation that grows keeps its key: only what comes before the first answer counts.
    """
    try:
        found = _PROMPT.decode(body)
    except (ValueError, RecursionError):
        return b""
    head = bytes(memoryview(found.system or found.instructions)[:PREFIX_BYTES])
    raw = found.messages or found.prompt or found.input
    return (head + _opening(memoryview(raw)[:PREFIX_BYTES].tobytes()))[:PREFIX_BYTES]


def session_key(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The session that a request names: the header x-session-id, else the JSON field session_id, else user.

    b"" where it names none. Header names are in lower case.
    """
    for name, value in headers:
        if name == SESSION_HEADER and value:
            return value
    try:
        found = _SESSION.decode(body)
    except (ValueError, RecursionError):
        return b""
    return _scalar(found.session_id) or _scalar(found.user)


def _scalar(raw: msgspec.Raw) -> bytes:
    """The text of a JSON string without its quotes, a number as it is, b"" for anything else."""
    value = bytes(raw)
    if value.startswith(b'"'):
        return value[1:-1]
    return value if value[:1].isdigit() else b""


def _opening(start: bytes) -> bytes:
    """Of a list of messages all up to the first of the user, as far as `start` goes; all of anything else.

    A message that `start` cuts off has the same bytes there however long the conversation is.
    """
    if not start.startswith(b"["):
        return start
    text = start.decode(errors="replace")
    end = 1
    while True:
        at = _SEPARATOR.match(text, end).end()  # type: ignore[union-attr]  # it matches nothing, too
        try:
            message, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return start
        if not isinstance(message, dict):
            return start
        if message.get("role") == "user":
            return text[:end].encode()
