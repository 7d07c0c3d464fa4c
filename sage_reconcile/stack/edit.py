"""One value written into the text of a stack file: comments, order, quoting and blank lines stay.

The text itself is edited, so that a line that is not concerned is not touched; what comes out is read again
and must mean what was meant, else nothing is written.
"""

import copy
import json
import re
from typing import Any

from sage_reconcile.errors import PermanentError
from sage_reconcile.stack.problems import Path, dotted
from sage_reconcile.stack.spans import Span, spans
from sage_reconcile.stack.yamltree import parse, scalar

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")


class CannotEdit(PermanentError):
    """The text is written in a way that this edit would not survive: a person has to make it."""


def written(text: str, path: Path, value: Any) -> str:
    """`text` with the value at `path`, which is made where it is missing. Raises CannotEdit."""
    root, faults = parse(text)
    if root is None or faults:
        raise CannotEdit("it is not valid YAML any more")
    plain = root.plain()
    wanted = copy.deepcopy(plain)
    _put(wanted, path, value)
    return _checked(_Writer(text, plain).write(path, value), wanted, path)


def renamed(text: str, path: Path, name: str) -> str:
    """`text` with another name for the key at the end of `path`; its value stays. Raises CannotEdit."""
    root, faults = parse(text)
    if root is None or faults:
        raise CannotEdit("it is not valid YAML any more")
    wanted = copy.deepcopy(root.plain())
    holder = _at(wanted, path[:-1])
    span = _Writer(text, wanted).find(path[:-1])
    found = span.entry(str(path[-1])) if span is not None else None
    if found is None or not isinstance(holder, dict):
        raise CannotEdit(f"{dotted(path)} is not written there")
    key = found[0]
    holder[name] = holder.pop(path[-1])
    return _checked(f"{text[: key.start]}{_rendered(name)}{text[key.end :]}", wanted, path)


def _checked(text: str, wanted: Any, path: Path) -> str:
    root, faults = parse(text)
    if faults or root is None or root.plain() != wanted:
        raise CannotEdit(f"{dotted(path)} stands in a way that cannot be edited safely")
    return text


class _Writer:
    """The text with where everything stands in it, and what it means."""

    def __init__(self, text: str, plain: Any) -> None:
        self._text = text
        self._plain = plain
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._root = spans(text)

    def find(self, path: Path) -> Span | None:
        """The span at `path`, as far as it is written there itself (not by an alias or a merge)."""
        span = self._root
        for part in path:
            span = _child(span, part) if span is not None else None
        return span

    def write(self, path: Path, value: Any) -> str:
        depth = next(n for n in range(len(path), -1, -1) if self.find(path[:n]) is not None)
        span, rest = self.find(path[:depth]), path[depth:]
        assert span is not None  # of the empty path it is the document
        if not rest:
            if span.kind in ("map", "list") and not span.is_flow:
                raise CannotEdit(f"{dotted(path)} is written over several lines")
            return self._replaced(span, _rendered(value))
        if span.kind == "alias":
            return self._replaced(span, f"{{<<: *{span.text}, {self._entry(path, depth, value)}}}")
        if span.kind == "scalar":
            space = " " if span.start == span.end else ""
            return self._replaced(span, f"{space}{{{self._entry(path, depth, value)}}}")
        if span.kind != "map":
            raise CannotEdit(f"{dotted(path[:depth])} is a list")
        return self._inserted(span, self._entry(path, depth, value))

    def _entry(self, path: Path, depth: int, value: Any) -> str:
        """`key: value` for what is missing below `depth`. What a merge brings in is written out with it."""
        known = _at(self._plain, path[: depth + 1])
        content: Any = known
        if len(path) == depth + 1:
            content = value
        else:
            holder = {path[depth]: copy.deepcopy(known)}
            _put(holder, path[depth:], value)
            content = holder[path[depth]]
        return f"{_rendered(path[depth])}: {_rendered(content)}"

    def _replaced(self, span: Span, text: str) -> str:
        return f"{self._text[: span.start]}{text}{self._text[span.end :]}"

    def _inserted(self, span: Span, entry: str) -> str:
        """After the last entry of the map: in its braces, or on a line of its own."""
        if span.is_flow:
            at = span.entries[-1][1].last if span.entries else span.start + 1
            glue = ", " if span.entries else ""
            return f"{self._text[:at]}{glue}{entry}{self._text[at:]}"
        end = self._text.find(self._newline, span.last)
        end = end if end >= 0 else len(self._text)
        indent = " " * span.entries[0][0].column
        return f"{self._text[:end]}{self._newline}{indent}{entry}{self._text[end:]}"


def _child(span: Span, part: str | int) -> Span | None:
    if span.kind == "map" and isinstance(part, str):
        found = span.entry(part)
        return found[1] if found else None
    if span.kind == "list" and isinstance(part, int) and part < len(span.items):
        return span.items[part]
    return None


def _at(plain: Any, path: Path) -> Any:
    """The value at `path`, None where there is none."""
    for part in path:
        if isinstance(plain, dict):
            plain = plain.get(part)
        elif isinstance(plain, list) and isinstance(part, int) and part < len(plain):
            plain = plain[part]
        else:
            return None
    return plain


def _put(plain: Any, path: Path, value: Any) -> None:
    for part in path[:-1]:
        if isinstance(plain, dict) and not isinstance(plain.get(part), dict | list):
            plain[part] = {}
        plain = plain[part]
    plain[path[-1]] = value


def _rendered(value: Any) -> str:
    """The value in one line, right in a block and between braces."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_rendered(key)}: {_rendered(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_rendered(item) for item in value)}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return f"{value}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) and scalar(text) == text else json.dumps(text, ensure_ascii=False)
