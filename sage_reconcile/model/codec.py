"""Frozen values to JSON bytes and back: one codec for marks, plan files, records and routing tables."""

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Compact JSON with sorted keys: equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


def to_plain(value: object) -> Any:
    """The value as dicts, lists and scalars."""
    return msgspec.to_builtins(value)


def decode(data: bytes | str, kind: type[T]) -> T:
    """The value that `encode` gave. Raises ValueError (msgspec.ValidationError, DecodeError)."""
    return msgspec.json.decode(data, type=kind)


def prepare(*kinds: type) -> None:
    """Learns types before threads decode them: the library crashes where two meet one for the first time."""
    for kind in kinds:
        msgspec.json.Decoder(kind)
