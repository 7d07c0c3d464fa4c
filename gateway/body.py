"""What the gateway reads of a request body, and the one field that it may replace: `model`.

All other bytes stay.
"""

import json
import re
import zlib
from typing import Any, TypeVar

import msgspec

from gateway.errors import RequestError, missing_model, too_large

Span = tuple[int, int]
T = TypeVar("T", str, bytes)

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(strict=False)
_BOUNDARY = re.compile(rb'boundary=(?:"([^"]+)"|([^;\s]+))', re.IGNORECASE)
_MODEL_PART = re.compile(rb'content-disposition:[^\r\n]*[;\s]name="?model"?\s*(?:;|\r|$)', re.IGNORECASE)


# One plain `"model": "..."`; with the other conditions of `_one_plain_span`, the only one there is.
_PLAIN_MODEL = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*("[^"\\]*")')
# So many digits Python reads as one number, and no more.
HUGE_DIGITS = 4300
# The most that is believed: more is counted with nowhere, and digits without end are costly to count with.
MAX_TOKENS = 10**12
# Bytes that one look at a compressed body may give at once.
_UNPACK_STEP = 1 << 20


class _Head(msgspec.Struct):
    model: Any = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None
    session_id: Any = None


_HEAD = msgspec.json.Decoder(_Head)


def read(body: bytes, content_type: bytes) -> tuple[str, int, Any]:
    """The model that the request asks for, its `max_tokens`, 0 where the body names none, and its
    `session_id`, whatever that is, None where there is none.

    Raises RequestError (400) where there is no model.
    """
    if _is_multipart(content_type):
        spans = _multipart_spans(body, content_type)
        text = body[slice(*spans[-1])].decode(errors="replace").strip() if spans else msgspec.UNSET
        head = _Head(text)
    else:
        head = _json_head(body)
    tokens = head.max_completion_tokens or head.max_tokens or 0
    most = min(max(tokens, 0), MAX_TOKENS) if isinstance(tokens, int) else 0
    return _checked(head.model), most, head.session_id


def unpacked(body: bytes, encoding: bytes, limit: int) -> bytes:
    """A body without its content-encoding (gzip or deflate), of at most `limit` bytes.

    Raises RequestError: 415 for another encoding, 400 for damaged data, 413 for too much.
    """
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        message = f"Request bodies with content-encoding {encoding.decode('latin-1')} are not taken."
        raise RequestError(415, message, "unsupported_encoding")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    pieces, size, rest = [], 0, body
    try:
        while rest and not unpack.eof:
            piece = unpack.decompress(rest, _UNPACK_STEP)
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            pieces.append(piece)
            rest = unpack.unconsumed_tail
    except zlib.error as error:
        message = f"The request body is not valid {encoding.decode()}: {error}."
        raise RequestError(400, message, "invalid_encoding") from error
    if not unpack.eof:
        raise RequestError(400, f"The {encoding.decode()} body is cut short.", "invalid_encoding")
    return b"".join(pieces)


def _checked(model: object) -> str:
    if model is msgspec.UNSET or model is None or model == "":
        raise missing_model()
    if not isinstance(model, str):
        message = f"The field 'model' must be a string, not {type(model).__name__}."
        raise RequestError(400, message, "invalid_model", param="model")
    if not model.isascii() and not _is_text(model):
        message = "The field 'model' holds half a character (a lone surrogate)."
        raise RequestError(400, message, "invalid_model", param="model")
    return model


def with_model(body: bytes, content_type: bytes, name: str) -> bytes:
    """The body with every value of its (perhaps repeated) `model` field replaced by `name`.

    Every one, because engines differ in which of two equal keys they believe. `body` has passed `read`.
    """
    if _is_multipart(content_type):
        return _replace(body, _multipart_spans(body, content_type), name.encode())
    value = json.dumps(name, ensure_ascii=False)
    if span := _one_plain_span(body):
        return b"".join((body[: span[0]], value.encode(), body[span[1] :]))
    text = _text(body)
    try:
        spans = _json_spans(text)
    except (ValueError, RecursionError) as error:
        # The quick parser of `read` skips what it does not need, and accepts a little more.
        raise _not_json(error) from error
    return _replace(text, spans, value).encode()


def _one_plain_span(body: bytes) -> Span | None:
    """Where the value of `model` lies, found by its bytes alone, or None if it takes a parser.

    `body` is a JSON object with that key at its top level (it has passed `read`). If the bytes `"model"`
    occur once, and no key or text is written with the escapes that could spell the same, they are that key.
    """
    if body.count(b'"model"') != 1 or b"\\u006" in body:
        return None
    found = _PLAIN_MODEL.search(body)
    return found.span(1) if found else None


def _json_head(body: bytes) -> _Head:
    if not body.isascii():
        _text(body)
    if len(body) <= HUGE_DIGITS or not _may_hold_huge_number(body):
        try:
            return _HEAD.decode(body)
        except (msgspec.DecodeError, RecursionError):
            pass
    # Python's own parser takes a little more (NaN, lone surrogates), as the engines do: let them decide.
    try:
        plain = json.loads(_text(body))
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from error
    if not isinstance(plain, dict):
        message = f"The request body must be a JSON object, not {type(plain).__name__}."
        raise RequestError(400, message, "invalid_json")
    return _Head(
        plain.get("model", msgspec.UNSET),
        plain.get("max_tokens"),
        plain.get("max_completion_tokens"),
        plain.get("session_id"),
    )


def _text(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        message = f"The request body is not valid JSON, as it is not UTF-8: {error}."
        raise RequestError(400, message, "invalid_json") from error
    if text.startswith("\ufeff"):
        message = "The request body is not valid JSON: it begins with a byte order mark."
        raise RequestError(400, message, "invalid_json")
    return text


def _not_json(error: Exception) -> RequestError:
    why = "it is nested too deeply" if isinstance(error, RecursionError) else error
    return RequestError(400, f"The request body is not valid JSON: {why}.", "invalid_json")


def _may_hold_huge_number(body: bytes) -> bool:
    """Whether there may be a number of more than HUGE_DIGITS; the quick parser skips those.

    A run of digits that long covers a whole look, wherever it begins; most bodies have no such look.
    """
    return any(body[at : at + 64].isdigit() for at in range(0, len(body), 2048))


def _json_spans(text: str) -> list[Span]:
    """Where the values of the top-level key `model` lie in a valid JSON object."""
    spans: list[Span] = []
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        if key == "model":
            spans.append((start, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return spans


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _is_multipart(content_type: bytes) -> bool:
    return content_type[:1] in b"mM" and content_type[:19].lower() == b"multipart/form-data"


def _multipart_spans(body: bytes, content_type: bytes) -> list[Span]:
    """Where the values of the parts named `model` lie in a multipart form."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        message = "The multipart form has no boundary in its content type."
        raise RequestError(400, message, "invalid_form")
    delimiter = b"--" + (found[1] or found[2])
    spans: list[Span] = []
    at = body.find(delimiter)
    while at >= 0 and body[at + len(delimiter) : at + len(delimiter) + 2] == b"\r\n":
        head = at + len(delimiter) + 2
        end = body.find(b"\r\n" + delimiter, head)
        blank = body.find(b"\r\n\r\n", head, end)
        if end < 0 or blank < 0:
            raise RequestError(400, "The multipart form is cut short.", "invalid_form")
        if any(_MODEL_PART.match(line) for line in body[head:blank].split(b"\r\n")):
            spans.append((blank + 4, end))
        at = end + 2
    return spans


def _replace(whole: T, spans: list[Span], value: T) -> T:
    pieces: list[T] = []
    at = 0
    for start, end in spans:
        pieces += [whole[at:start], value]
        at = end
    pieces.append(whole[at:])
    return whole[:0].join(pieces)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
