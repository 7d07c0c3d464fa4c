"""The stack file as text: what people read first, so it is written line by line. Pure."""

import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sage_reconcile.importing.managed import Managed

WIDTH = 110
# Plain YAML scalars that no reader takes for something else.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine: the external form, what is to be known of it, and the form that sage would start."""

    fields: Mapping[str, Any]
    comments: tuple[str, ...]
    managed: Managed | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """An entry of `runtimes`."""

    kind: str
    python: str


HEAD = """\
Written by `sage import` on {host}: engines that were started there by hand.

Each one is external: the gateway routes to it and probes it, and sage never starts, stops or restarts it.
To hand one over, end it by hand, remove its external entry, uncomment the entry below it, and run
`sage apply`: from then on sage starts it, watches it, and counts its memory."""


def stack_text(name: str, host: str, runtimes: Mapping[str, Environment], entries: Iterable[Entry]) -> str:
    """A whole stack file in canonical layout."""
    lines = [f"# {line}".rstrip() for line in HEAD.format(host=host).splitlines()]
    lines += ["version: 1", f"name: {scalar(name)}"]
    if runtimes:
        lines += ["", "# The environments in which these engines run now; only commented entries use them."]
        lines.append("runtimes:")
        for called, one in sorted(runtimes.items()):
            lines.append(f"  {called}: {scalar({'kind': one.kind, 'python': one.python})}")
    lines += ["", "engines:"]
    for entry in entries:
        lines += _entry(entry)
    return "\n".join(lines).rstrip("\n") + "\n"


def _entry(entry: Entry) -> list[str]:
    lines = [f"  # {line}" for comment in entry.comments for line in _folded(comment)]
    lines += [f"  {line}" for line in _item(entry.fields)]
    if entry.managed is not None:
        lines += ["  # Started by sage instead, after it was ended by hand:"]
        lines += [f"  # {note}" for text in entry.managed.notes for note in _folded(f"Note: {text}.")]
        lines += [f"  # {line}" for line in _item(entry.managed.fields)]
    return [*lines, ""]


def _item(fields: Mapping[str, Any]) -> list[str]:
    """One item of a list, block style outside and flow style inside."""
    return [
        f"{'- ' if number == 0 else '  '}{key}: {scalar(value)}"
        for number, (key, value) in enumerate(fields.items())
    ]


def _folded(text: str) -> list[str]:
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return textwrap.wrap(clean, WIDTH - 4, break_long_words=False, break_on_hyphens=False) or [""]


def scalar(value: Any) -> str:
    """YAML on one line, in the layout of `sage fmt`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
