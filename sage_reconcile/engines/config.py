"""Reading config.json of a model: made by anybody, so nothing in it is believed to be what it should be."""

from collections.abc import Mapping
from typing import Any

LARGEST = 2**31
"""No dimension of a model is larger; a file that says so is wrong."""

MAX_LAYERS = 4096


class Unreadable(ValueError):
    """config.json lacks something that memory depends on, or says something impossible."""


class Config:
    """A JSON object with several names for the same thing, as models have them."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self.plain = plain

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of these that is there. Raises Unreadable where it must be there, or is no count."""
        for name in names:
            value = self.plain.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
                raise Unreadable(f"{name} is {value!r:.60}, not a number of something")
            return value
        if default is None:
            raise Unreadable(f"{names[0]} is missing")
        return default

    def text(self, name: str, default: str = "") -> str:
        value = self.plain.get(name)
        return value if isinstance(value, str) else default

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.plain.get(name)
        return value if isinstance(value, bool) else default

    def items(self, name: str) -> list[Any]:
        value = self.plain.get(name)
        return value[:MAX_LAYERS] if isinstance(value, list) else []

    def numbers(self, name: str) -> frozenset[int]:
        return frozenset(item for item in self.items(name) if isinstance(item, int))

    def inner(self, name: str) -> "Config":
        """A nested object; an empty one where there is none."""
        value = self.plain.get(name)
        return Config(value if isinstance(value, Mapping) else {})

    def has(self, name: str) -> bool:
        return self.plain.get(name) is not None
