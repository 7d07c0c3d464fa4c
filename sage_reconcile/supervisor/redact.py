"""Keeps secrets of environment and headers out of records: engines like to print their settings."""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

# Names whose values are secrets. Values of other names (paths, numbers) would only make holes in messages.
SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth|cookie|session", re.IGNORECASE)
# Of options the name must be clearer: --tokenizer and --max-num-batched-tokens are none.
SECRET_OPTION = re.compile(r"^--?[\w-]*(?:api-?key|[-_]token$|secret|passw|credential)", re.IGNORECASE)
SHORTEST = 6
HIDDEN = "***"


class Redactor:
    """Replaces known secret values in a text. Of "Bearer X" both the whole and X are hidden.

    Secret is what has such a name, or a name among `secrets`.
    """

    def __init__(
        self, named: Iterable[tuple[str, str]], argv: Sequence[str] = (), secrets: Collection[str] = ()
    ) -> None:
        values: set[str] = set()
        hidden = [value for name, value in named if name in secrets or SECRET_NAME.search(name)]
        for value in [*hidden, *_option_values(argv)]:
            values.update(part for part in (value, *value.split()) if len(part) >= SHORTEST)
        # Longest first, so that a secret within another leaves no rest of it.
        self._values = sorted(values - {"Bearer"}, key=len, reverse=True)

    def clean(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return text


def _option_values(argv: Sequence[str]) -> list[str]:
    """Of `--api-key VALUE` and `--api-key=VALUE`, the values."""
    found = []
    for option, following in pairwise([*argv, ""]):
        name, is_joined, value = option.partition("=")
        if SECRET_OPTION.match(name):
            found.append(value if is_joined else following)
    return found
