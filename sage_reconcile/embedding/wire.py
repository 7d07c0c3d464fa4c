"""The OpenAI embeddings API as bytes: requests read and checked, replies and errors written."""

import base64
import math
import struct
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sage_reconcile.errors import PermanentError

MAX_INPUTS = 2048


class RequestError(PermanentError):
    """An answer other than 200, in OpenAI's shape."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        self.status = status
        self.param = param
        self.code = code
        super().__init__(message)


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """The fields that this server knows; others are ignored, as clients send many. `truncate` is an extension
    that other embedding servers have too; None means the server's own default."""

    model: str
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    truncate: bool | None = None


class Texts(msgspec.Struct, frozen=True):
    """Inputs that the server tokenizes."""

    values: list[str]


class TokenLists(msgspec.Struct, frozen=True):
    """Inputs that came as token ids of this model."""

    values: list[list[int]]


Inputs = Texts | TokenLists


def parse_request(body: bytes) -> EmbeddingRequest:
    """Raises RequestError 400 that names the field."""
    try:
        return msgspec.json.decode(body, type=EmbeddingRequest)
    except msgspec.ValidationError as error:
        _, _, path = str(error).partition(" - at `$.")
        raise RequestError(400, str(error), param=path.rstrip("`") or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, f"the request body is not JSON: {error}") from error


def parse_inputs(value: object) -> Inputs:
    """`input` as texts or token lists. Raises RequestError 400."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise _bad_input(
            "input must be a string, a list of strings, a list of token ids or a list of such lists"
        )
    if not value:
        raise _bad_input("input is empty; send at least one text")
    if _is_token_list(value):
        return TokenLists([value])
    if len(value) > MAX_INPUTS:
        raise _bad_input(
            f"input has {len(value)} items; one request takes at most {MAX_INPUTS}, so send several"
        )
    for index, item in enumerate(value):
        if item in ("", []):
            raise _bad_input(f"input[{index}] is empty; leave it out or send a text")
    if all(isinstance(item, str) for item in value):
        return Texts(value)
    if all(_is_token_list(item) for item in value):
        return TokenLists(value)
    raise _bad_input("the items of input must be all strings or all lists of token ids")


def _is_token_list(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _bad_input(message: str) -> RequestError:
    return RequestError(400, message, param="input")


def shorten(vector: bytes, dimensions: int, normalize: bool) -> bytes:
    """The first `dimensions` floats, with `normalize` at length 1 again."""
    values = struct.unpack(f"<{dimensions}f", vector[: 4 * dimensions])
    norm = math.hypot(*values) if normalize else 1.0
    return struct.pack(f"<{dimensions}f", *(value / (norm or 1.0) for value in values))


def render_reply(model: str, vectors: Sequence[bytes], encoding: str, prompt_tokens: int) -> bytes:
    """The JSON of an answer; vectors are little-endian float32."""

    def embedding(vector: bytes) -> object:
        if encoding == "base64":
            return base64.b64encode(vector).decode("ascii")
        return struct.unpack(f"<{len(vector) // 4}f", vector)

    data = [
        {"object": "embedding", "index": index, "embedding": embedding(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def render_error(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """The JSON of an error in OpenAI's shape."""
    kind = (
        "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    )
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})
