"""A fault before it has a place: where in the document, what is wrong, what next. And did-you-mean."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]

_MAX_OPTIONS = 500


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault at `path` of the merged document.

    `at_key` places it on the key instead of the value. `is_partial` says that the rest of a stack whose
    other files could not be read may cause it, so that it is told only when every file was read.
    """

    path: Path
    message: str
    hint: str = ""
    at_key: bool = False
    is_partial: bool = False


def dotted(path: Path) -> str:
    """A path as users write it: `engines[0].args.max-model-len`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A hint that names the option nearest to `word`, or "" where none is near."""
    near = [option for option in options if abs(len(option) - len(word)) <= 3]
    if len(near) > _MAX_OPTIONS:
        near = [option for option in near if option[:2] == word[:2]][:_MAX_OPTIONS]
    matches = difflib.get_close_matches(word, near, n=1, cutoff=0.6)
    return f"did you mean {matches[0]}?" if matches else ""


def describe(value: object) -> str:
    """What a value of the document is, in words: `text "abc"`, `the number 5`, `a list`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            shown = value if len(value) <= 60 else f"{value[:57]}..."
            return f'text "{shown}"'
        case list() | tuple():
            return "a list"
        case dict():
            return "a map"
    return f"a {type(value).__name__}"
