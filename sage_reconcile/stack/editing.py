"""Edits of the engines of a stack file's text: what stands beside them stays as it is, letter for letter.

An entry that has lines of its own is edited apart from the rest: the YAML library takes comments that come
after an entry for a part of it, and moves or drops them with it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from sage_reconcile.errors import PermanentError
from sage_reconcile.stack.formatting import edited
from sage_reconcile.stack.yamltree import Node, parse

_ALONE = "engines:\n"


def engines_of(text: str) -> list[dict[str, Any]]:
    """The entries of `engines` as the text writes them; [] where it cannot be read."""
    root, _ = parse(text)
    return [plain for one in _entries(root) if isinstance(plain := one.plain(), dict)]


def with_engine(text: str, path: str, fields: Mapping[str, Any]) -> str:
    """The text with `fields` laid over the engine of that name; without one, a new entry stands at the end.

    Maps are merged. Raises PermanentError where that cannot be done without changing something else.
    """

    def change(document: dict[str, Any]) -> None:
        engines = document.setdefault("engines", [])
        known = next((one for one in engines if one.get("name") == fields["name"]), None)
        if known is None:
            engines.append(dict(fields))
        else:
            _lay(known, fields)

    return _changed(text, path, change, fields["name"])


def without_engine(text: str, path: str, name: str) -> str:
    """The text without the engine `name` and the comment lines right above it. Raises as `with_engine`."""

    def change(document: dict[str, Any]) -> None:
        document["engines"][:] = [one for one in document["engines"] if one.get("name") != name]

    return _changed(text, path, change, name, is_removal=True)


def _lay(entry: dict[str, Any], fields: Mapping[str, Any]) -> None:
    for key, value in fields.items():
        if isinstance(value, dict) and isinstance(entry.get(key), dict):
            _lay(entry[key], value)
        elif entry.get(key) != value:
            entry[key] = value


def _changed(
    text: str, path: str, change: Callable[[dict[str, Any]], None], name: str, is_removal: bool = False
) -> str:
    root, _ = parse(text)
    lines, entries = text.splitlines(), _entries(root)
    if root is None or not entries or not all(_is_block(lines, one) for one in entries):
        return edited(text, path, change)
    names = [one.value["name"].value for one in entries]
    index = names.index(name) if name in names else None
    if is_removal:
        after = _without_lines(lines, root, index) if index is not None else lines
    else:
        after = _with_lines(lines, entries, index, path, change)
    wanted = root.plain()
    change(wanted)
    whole = "\n".join(after).rstrip("\n") + "\n"
    again, faults = parse(whole)
    if faults or again is None or again.plain() != wanted:
        raise PermanentError(f"{path}: cannot be edited without changing something else: edit it by hand")
    return whole


def _with_lines(
    lines: list[str],
    entries: list[Node],
    index: int | None,
    path: str,
    change: Callable[[dict[str, Any]], None],
) -> list[str]:
    """The lines with the entry at `index` changed, or with a new one below all that is said of the last."""
    depth = _depth(lines, entries[-1].line - 1)
    first = last = _end_of_list(lines, entries[-1].line - 1)
    alone = "engines: []\n"
    if index is not None:
        first, last = entries[index].line - 1, _end_of_entry(lines, entries, index)
        alone = _ALONE + "".join(f"  {line[depth:]}\n" for line in lines[first:last])
    made = edited(alone, path, change).splitlines()[1:]
    placed = [" " * depth + line[2:] if line else "" for line in made]
    return [*lines[:first], *([""] if index is None else []), *placed, *lines[last:]]


def _without_lines(lines: list[str], root: Node, index: int) -> list[str]:
    entries = _entries(root)
    first = _with_comments(lines, entries[index].line - 1)
    if index + 1 < len(entries):
        last = _with_comments(lines, entries[index + 1].line - 1)
    else:
        last = _end_of_list(lines, entries[index].line - 1)
    kept = [*lines[:first], *lines[last:]]
    if len(entries) == 1:
        key = root.keys["engines"][0] - 1
        kept[key] = re.sub(r"^engines *:", "engines: []", kept[key])
    return kept


def _entries(root: Node | None) -> list[Node]:
    found = root.value.get("engines") if root is not None and isinstance(root.value, dict) else None
    return found.value if found is not None and isinstance(found.value, list) else []


def _is_block(lines: list[str], entry: Node) -> bool:
    return re.match(r" *- ", lines[entry.line - 1]) is not None


def _depth(lines: list[str], line: int) -> int:
    """The column of the entry's hyphen."""
    return len(lines[line]) - len(lines[line].lstrip())


def _with_comments(lines: list[str], line: int) -> int:
    """The first line of what is said of the entry that begins at `line`."""
    while lines[line - 1].lstrip().startswith("#"):
        line -= 1
    return line


def _end_of_entry(lines: list[str], entries: list[Node], index: int) -> int:
    """The line after the last one of the entry that is neither empty nor a comment."""
    if index + 1 < len(entries):
        end = entries[index + 1].line - 1
    else:
        end = _end_of_list(lines, entries[index].line - 1)
    while not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#"):
        end -= 1
    return end


def _end_of_list(lines: list[str], line: int) -> int:
    """The line after the last one that stands deeper than the hyphen at `line`."""
    depth = _depth(lines, line)
    end = line + 1
    for number in range(line + 1, len(lines)):
        text = lines[number]
        if text.strip() and _depth(lines, number) <= depth:
            break
        end = number + 1 if text.strip() else end
    return end
