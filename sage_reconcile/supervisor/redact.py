"""Keeps secrets of environment and headers out of records: engines like to print their settings."""

import re
from collections.abc import Iterable

# Names whose values are secrets. Values of other names (paths, numbers) would only make holes in messages.
SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth|cookie|session", re.IGNORECASE)
SHORTEST = 6
HIDDEN = "***"


class Redactor:
    """Replaces known secret values in a text. Of "Bearer X" both the whole and X are hidden."""

    def __init__(self, named: Iterable[tuple[str, str]]) -> None:
        values: set[str] = set()
        for name, value in named:
            if SECRET_NAME.search(name):
                values.update(part for part in (value, *value.split()) if len(part) >= SHORTEST)
        # Longest first, so that a secret within another leaves no rest of it.
        self._values = sorted(values - {"Bearer"}, key=len, reverse=True)

    def clean(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return text
