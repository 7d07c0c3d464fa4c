"""The flags of an engine that its memory depends on, wherever the file gives them: `args` or `extra_args`."""

import re
from collections.abc import Iterator

from sage_reconcile.model.desired import ArgValue, LaunchSpec

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
"""What vLLM makes of numbers like 32k and 32K."""


class Flags:
    """The last value of each flag; names with dashes."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._values = {key.replace("_", "-").lower(): value for key, value in spec.args}
        self._values |= dict(_parsed(spec.extra_args))

    def number(self, name: str, default: int) -> int:
        """A count above 0; the default where it is not given, or is none."""
        value = self._values.get(name)
        if isinstance(value, bool) or value is None:
            return default
        if isinstance(value, int | float):
            return int(value) if value > 0 else default
        found = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([kKmMgG]?)", str(value).strip())
        return int(float(found[1]) * _UNITS.get(found[2], 1)) if found else default

    def text(self, name: str, default: str = "") -> str:
        value = self._values.get(name)
        return value if isinstance(value, str) and value else default

    def flag(self, name: str) -> bool:
        return self._values.get(name) in (True, "true", "True", "1", 1) or self._values.get(name) == ""

    def off(self, name: str) -> bool:
        """Whether it is turned off, as --no-NAME does."""
        return self._values.get(name) in (False, "false", "False")

    def has(self, name: str) -> bool:
        return self._values.get(name) not in (None, False)


def _parsed(words: tuple[str, ...]) -> Iterator[tuple[str, ArgValue]]:
    """`--name value`, `--name=value` and `--name` out of a command line."""
    for number, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        following = words[number + 1] if number + 1 < len(words) else "--"
        is_value = not following.startswith("-") or following[1:].isdigit()
        given = value if equals else following if is_value else True
        if name.startswith("no-"):
            name, given = name[3:], False
        yield name.replace("_", "-").lower(), given
