"""Field types of the stack file: each reads one notation, says what is wrong, and has a JSON schema."""

import math
import re
from collections import Counter
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StrictInt,
    StrictStr,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from sage_reconcile.model.desired import ArgValue
from sage_reconcile.stack.problems import describe
from sage_reconcile.stack.references import Substituted, is_reference
from sage_reconcile.stack.units import parse_duration, parse_gpu_memory

NAME_PATTERN = "[a-z0-9][a-z0-9._-]{0,62}"
_NAME = re.compile(NAME_PATTERN)
_ARG_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GPU_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
_DIGEST = re.compile("[0-9a-fA-F]{64}")
# As browsers send it: in small letters, without a path.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DURATION_HINT = "write 30s, 500ms, 10m, 1h30m, or a number of seconds"
_SIZE_HINT = "write 20GiB, 500MiB or 8GB, a fraction of one GPU such as 0.5, or auto"


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """A pydantic error that carries a message and a hint in plain words."""
    return PydanticCustomError("sage", "{message}", {"message": message, "hint": hint})


def _number_from_text(value: Any) -> Any:
    if isinstance(value, Substituted) and re.fullmatch(r"[-+]?\d{1,18}", value):
        return int(value)
    return value


def _bool(value: Any) -> bool:
    if isinstance(value, Substituted):
        value = {"true": True, "false": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise wrong(f"must be true or false, is {describe(value)}")
    return value


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(f"a name must be text, is {describe(value)}", "put it in quotes")
    if not is_name(value):
        raise wrong(
            f'"{value}" cannot be a name',
            "at most 63 of a-z, 0-9, dot, underscore and hyphen; the first a letter or digit",
        )
    return str(value)


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong(f"a duration is wanted, this is {describe(value)}", _DURATION_HINT)
    try:
        return parse_duration(value)
    except ValueError as error:
        raise wrong(str(error), _DURATION_HINT) from None


def _positive_duration(value: Any) -> float:
    seconds = _duration(value)
    if seconds <= 0:
        raise wrong("must be more than 0", _DURATION_HINT)
    return seconds


def _gpu_memory(value: Any) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong(f"a size is wanted, this is {describe(value)}", _SIZE_HINT)
    try:
        return parse_gpu_memory(value)
    except ValueError as error:
        bare = isinstance(value, int | float) and value > 1
        raise wrong(str(error), f"did you mean {value}GiB? {_SIZE_HINT}" if bare else _SIZE_HINT) from None


def _gpus(value: Any) -> str | int | tuple[int | str, ...]:
    value = _number_from_text(value)
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, list) and value:
        return _gpu_list(value)
    shown = "an empty list" if value == [] else describe(value)
    raise wrong(f"cannot be {shown}", "write auto, 0 for the CPU, a count, or a list of GPU indices or UUIDs")


def _gpu_list(value: list[Any]) -> tuple[int | str, ...]:
    for gpu in value:
        is_index = isinstance(gpu, int) and not isinstance(gpu, bool) and gpu >= 0
        if not is_index and not (isinstance(gpu, str) and _GPU_UUID.fullmatch(gpu)):
            raise wrong(
                f"{describe(gpu)} is not a GPU", "write indices as 0, or UUIDs as nvidia-smi -L shows them"
            )
    if len(set(value)) != len(value):
        raise wrong("the same GPU is listed twice")
    return tuple(value)


def _flags(args: dict[str, ArgValue]) -> dict[str, ArgValue]:
    """Flags by their normal names. Raises where two keys are the same flag."""
    flags = {normal_arg(key): value for key, value in args.items()}
    if len(flags) < len(args):
        counts = Counter(normal_arg(key) for key in args)
        raise wrong(
            f'the flag "{counts.most_common(1)[0][0]}" is given twice',
            "max_model_len is the same as max-model-len",
        )
    return flags


def _arg_key(key: str) -> str:
    if not _ARG_KEY.fullmatch(normal_arg(key)):
        raise wrong(f'"{key}" cannot be the name of a flag')
    return key


def normal_arg(key: str) -> str:
    """`--max_model_len` and `max-model-len` are the same flag: the latter."""
    return key.strip().lstrip("-").replace("_", "-")


def _arg_value(value: Any) -> ArgValue:
    if isinstance(value, dict):
        raise wrong("a flag cannot be a map", "write JSON in quotes: '{\"level\": 3}'")
    if isinstance(value, list):
        return tuple(_arg_item(item) for item in value)
    return value if value is None or isinstance(value, bool) else _arg_item(value)


def _arg_item(value: Any) -> str | int | float:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong(f"must be text or a number, is {describe(value)}")
    return value


def _env_key(key: str) -> str:
    if not _ENV_KEY.fullmatch(key):
        raise wrong(f'"{key}" cannot be the name of an environment variable')
    return key


def _word(value: Any) -> str:
    """Text of a scalar; a float is refused because `12.10` would silently become `12.1`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, float):
        raise wrong("must be text, is a number", f'put it in quotes, "{value:g}": a number may lose digits')
    raise wrong(f"must be text, is {describe(value)}", 'write "" for an empty one' if value is None else "")


def _metadata_value(value: Any) -> str:
    return str(value) if isinstance(value, float) else _word(value)


def _url(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/]+(/\S*)?", value):
        raise wrong(f"{describe(value)} is not a URL", "write http://HOST:PORT")
    url = value.rstrip("/")
    if url.endswith("/v1"):
        raise wrong("the URL must not end in /v1, sage appends it", f"write {url[:-3]}")
    return str(url)


def _secret(value: Any) -> str:
    if not isinstance(value, str) or not is_reference(value):
        raise wrong("a secret must not stand in the file itself", "write ${env:NAME} or ${file:PATH}")
    return str(value)


def _sessions_url(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(f"a URL is wanted, this is {describe(value)}", _SESSIONS_URLS)
    if is_reference(value):
        return value
    if not value.startswith(("postgresql://", "postgres://", "sqlite:////")):
        raise wrong("this is no URL of a database that sessions can be kept in", _SESSIONS_URLS)
    password = _PASSWORD.match(value)
    if password and not is_reference(password[1]):
        raise wrong("a password must not stand in the file itself", "write ${env:NAME} in its place")
    return value


def _digest(value: Any) -> str:
    hint = "`sage gateway key` makes a key and tells its digest"
    if not isinstance(value, str):
        raise wrong(f"64 hex digits in quotes are wanted, this is {describe(value)}", hint)
    if not _DIGEST.fullmatch(value):
        # Not shown: a key that was put here by mistake would be.
        raise wrong("64 hex digits are wanted, the SHA-256 of the key", hint)
    return value.lower()


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise wrong(
                f'"{origin}" is not an origin', "write https://HOST or https://HOST:PORT, no path; or *"
            )
    if "*" in value and len(value) > 1:
        raise wrong("* stands for every origin and stands alone", 'write ["*"], or list origins')
    return value


_SESSIONS_URLS = "write postgresql://USER:${env:NAME}@HOST/DATABASE or sqlite:////PATH"
_PASSWORD = re.compile(r"[a-z]+://[^/@]*?:(.*)@")
_ITEM = {"type": ["string", "number"]}
_DURATION_SCHEMA = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^(\d+(\.\d+)?|(\d+(\.\d+)?(ms|s|m|h|d))+)$"},
    ],
}
_GPU_MEMORY_SCHEMA = {
    "anyOf": [
        {"const": "auto"},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^\d+(\.\d+)? ?([MmGgTt][Ii]?[Bb])$"},
    ]
}
_GPU_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^(GPU|MIG)-"}]}
_GPUS_SCHEMA = {
    "anyOf": [
        {"const": "auto"},
        {"type": "integer", "minimum": 0},
        {"type": "array", "minItems": 1, "uniqueItems": True, "items": _GPU_SCHEMA},
    ]
}
_ARG_SCHEMA = {"type": ["string", "number", "boolean", "null", "array"], "items": _ITEM}
_WORD_SCHEMA = {"type": ["string", "integer", "boolean"]}
_SECRET_SCHEMA = {"type": "string", "pattern": r"^\$\{(env|file):[^}]+\}$"}


def _text_schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


Int = Annotated[StrictInt, BeforeValidator(_number_from_text)]
Bool = Annotated[bool, PlainValidator(_bool), WithJsonSchema({"type": "boolean"})]
Name = Annotated[str, PlainValidator(_name), _text_schema(f"^{NAME_PATTERN}$")]
Text = Annotated[StrictStr, Field(min_length=1), AfterValidator(str)]
Port = Annotated[Int, Field(ge=1, le=65535)]
Duration = Annotated[float, PlainValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
PositiveDuration = Annotated[float, PlainValidator(_positive_duration), WithJsonSchema(_DURATION_SCHEMA)]
GpuMemory = Annotated[str | int | float, PlainValidator(_gpu_memory), WithJsonSchema(_GPU_MEMORY_SCHEMA)]
Gpus = Annotated[str | int | tuple[int | str, ...], PlainValidator(_gpus), WithJsonSchema(_GPUS_SCHEMA)]
Url = Annotated[str, PlainValidator(_url), _text_schema("^https?://")]
SessionsUrl = Annotated[
    str,
    PlainValidator(_sessions_url),
    _text_schema(r"^(postgres(ql)?://|sqlite:////|\$\{(env|file):)"),
]
Secret = Annotated[str, PlainValidator(_secret), WithJsonSchema(_SECRET_SCHEMA)]
Digest = Annotated[str, PlainValidator(_digest), _text_schema("^[0-9a-fA-F]{64}$")]
Origins = Annotated[tuple[Text, ...], AfterValidator(_origins)]
Word = Annotated[str, PlainValidator(_word), WithJsonSchema(_WORD_SCHEMA)]
Words = tuple[Word, ...]
Args = Annotated[
    dict[
        Annotated[str, AfterValidator(_arg_key)],
        Annotated[ArgValue, PlainValidator(_arg_value), WithJsonSchema(_ARG_SCHEMA)],
    ],
    AfterValidator(_flags),
]
Env = dict[Annotated[str, AfterValidator(_env_key)], Word]
Metadata = dict[
    str,
    Annotated[
        str, PlainValidator(_metadata_value), WithJsonSchema({"type": ["string", "number", "boolean"]})
    ],
]
