"""Command lines back to flags, and what of them must not be written down. Pure."""

import re
from dataclasses import dataclass

from sage_reconcile.model.desired import ArgValue
from sage_reconcile.stack.fields import normal_arg

_NUMBER = re.compile(r"-?(\d+|\d*\.\d+|\d+\.\d*)([eE][-+]?\d+)?")
_SECRET_NAME = re.compile(r"(^|[-_])(key|token|secret|password|passwd|credentials?)($|[-_])", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\b(sk-|hf_|ghp_|glpat-)[\w-]{8,}|\bbearer\s|://[^/\s:@]+:[^/\s@]+@", re.IGNORECASE
)
SHORT = {"-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size"}


@dataclass(frozen=True, slots=True)
class Flags:
    """`long` by their names without dashes; `rest` are words that belong to no long flag, in order."""

    long: dict[str, ArgValue]
    rest: tuple[str, ...]


def parse(words: tuple[str, ...], switches: frozenset[str] = frozenset()) -> Flags:
    """Flags with their values: none (True), one, or several. `switches` never take one.

    A flag that is given twice stays in `rest`, as do short ones with their values: a map cannot hold them.
    """
    long: dict[str, ArgValue] = {}
    rest: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        name, _, joined = SHORT.get(word, word).partition("=") if word.startswith("-") else (word, "", "")
        is_long = word in SHORT or (word.startswith("--") and len(word) > 2)
        end = at + 1
        if is_long and "=" not in word and normal_arg(name) not in switches:
            while end < len(words) and not is_flag(words[end]):
                end += 1
        key = normal_arg(name)
        if not is_long or key in long:
            end = max(end, at + 1)
            rest += words[at:end]
        elif "=" in word:
            long[key] = value_of(joined)
        else:
            values = tuple(value_of(item) for item in words[at + 1 : end])
            long[key] = True if not values else values[0] if len(values) == 1 else values
        at = end
    return Flags(long, tuple(rest))


def is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word)


def value_of(text: str) -> str | int | float:
    """A number where writing it gives the same text again."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text:
            return number
    return text


def is_secret(name: str, value: object = "") -> bool:
    """Whether a variable or flag of this name, or with this value, must not be written down."""
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(str(value)))


def redacted(words: tuple[str, ...]) -> tuple[str, ...]:
    """The command line as it may be shown: values of secrets are dots."""
    shown: list[str] = []
    hide = False
    for word in words:
        name, equals, value = word.partition("=")
        if hide and not is_flag(word):
            shown.append("...")
        elif equals and is_secret(name.lstrip("-"), value):
            shown.append(f"{name}=...")
        elif is_secret("", word):
            shown.append("...")
        else:
            shown.append(word)
        if is_flag(word):
            hide = not equals and is_secret(word.lstrip("-"))
    return tuple(shown)
