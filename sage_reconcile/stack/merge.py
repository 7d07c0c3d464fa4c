"""Layers to one document, and from a path in it back to the file, line and column that hold the value."""

from collections.abc import Mapping, Sequence
from typing import Any

from sage_reconcile.errors import Fault
from sage_reconcile.stack.layers import Layer
from sage_reconcile.stack.problems import Path, Problem, did_you_mean, dotted
from sage_reconcile.stack.yamltree import Node, parse

_SYNONYMS = {"max_concurrent": "max_concurrent_requests", "max_concurrent_requests": "max_concurrent"}
_FREE_MAPS = ("args", "env", "metadata")
SET_PLACE = "--set"


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`: maps are merged, everything else is replaced, null removes."""
    merged = dict(base)
    for key, value in top.items():
        merged.pop(_SYNONYMS.get(key, ""), None)
        if value is None and key in merged:
            del merged[key]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = overlay(merged[key], value)
        else:
            merged[key] = value
    return merged


class Merged:
    """All layers as one document, and where each part of it stands.

    `origins[i]` says where engine i stands: (layer, index in the layer's engines). `faults` only show in a
    single file: names given twice.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.document: dict[str, Any] = {}
        self.layers = layers
        self.origins: list[list[tuple[int, int]]] = []
        self.faults: list[Fault] = []
        self.set_paths: list[Path] = []
        self._by_name: dict[str, int] = {}
        includes: list[Any] = []
        for index, layer in enumerate(layers):
            top = dict(layer.document)
            listed = top.pop("engines", None)
            if isinstance(top.get("include"), list):
                includes += top.pop("include")
            engines = self.document.get("engines")
            self.document = overlay(self.document, top)
            if isinstance(listed, list):
                self.document["engines"] = engines if isinstance(engines, list) else []
                self._add_engines(index, listed)
            elif "engines" in layer.document:
                self.document["engines"] = engines if listed is None else listed
        if includes:
            self.document.setdefault("include", includes)

    def _add_engines(self, layer: int, listed: list[Any]) -> None:
        engines: list[Any] = self.document["engines"]
        seen: dict[str, int] = {}
        for position, engine in enumerate(listed):
            name = engine.get("name") if isinstance(engine, dict) else None
            if not isinstance(name, str):
                name = None
            elif name in seen:
                self.faults.append(_twice(self.layers[layer], position, seen[name], name))
                name = None
            else:
                seen[name] = position
            at = self._by_name.get(name) if name is not None else None
            if at is not None:
                engines[at] = overlay(engines[at], engine)
                self.origins[at].append((layer, position))
                continue
            if name is not None:
                self._by_name[name] = len(engines)
            engines.append(engine)
            self.origins.append([(layer, position)])

    def engine_index(self, name: str) -> int | None:
        return self._by_name.get(name)

    @property
    def engine_names(self) -> list[str]:
        return list(self._by_name)

    def locate(self, problem: Problem, files: Sequence[str]) -> tuple[tuple[int, int, int], Fault]:
        """The fault that `problem` is, and its position for sorting: (file, line, column)."""
        path = problem.path
        if not self.layers or any(path[: len(given)] == given for given in self.set_paths):
            place = SET_PLACE if self.set_paths else files[0]
            return (len(files), 0, 0), Fault(place, 0, 0, dotted(path), problem.message, problem.hint)
        index, inside, shown = self._holder(path)
        layer = self.layers[index]
        line, column = _position(layer.root, inside, problem.at_key)
        fault = Fault(layer.path, line, column, dotted(shown), problem.message, problem.hint)
        return (files.index(layer.path), line, column), fault

    def _holder(self, path: Path) -> tuple[int, Path, Path]:
        """The layer that holds most of `path` (the later of equals), the path in it, and the path to show."""
        if len(path) < 2 or path[0] != "engines" or not isinstance(path[1], int):
            return self._deepest([(index, path, path) for index in range(len(self.layers))])
        best = self._deepest(
            [(layer, ("engines", at, *path[2:]), path) for layer, at in self.origins[path[1]]]
        )
        inherited = ("defaults", *path[2:])
        if len(path) > 2 and _depth(self.layers[best[0]].root, best[1]) < len(path):
            default = self._deepest([(index, inherited, inherited) for index in range(len(self.layers))])
            if _depth(self.layers[default[0]].root, inherited) == len(inherited):
                return default
        return best

    def _deepest(self, candidates: list[tuple[int, Path, Path]]) -> tuple[int, Path, Path]:
        return max(candidates, key=lambda c: (_depth(self.layers[c[0]].root, c[1]), c[0]))


def _twice(layer: Layer, position: int, first: int, name: str) -> Fault:
    engines = layer.root.value["engines"].value
    node = engines[position].value["name"]
    hint = f"first on line {engines[first].value['name'].line}"
    field = dotted(("engines", position, "name"))
    return Fault(layer.path, node.line, node.column, field, f'the engine name "{name}" is given twice', hint)


def _child(node: Node, part: str | int) -> Node | None:
    if isinstance(node.value, dict) and isinstance(part, str):
        found: Node | None = node.value.get(part)
        return found
    if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        inner: Node = node.value[part]
        return inner
    return None


def _depth(root: Node, path: Path) -> int:
    """How many parts of `path` exist below `root`."""
    node: Node | None = root
    for depth, part in enumerate(path):
        node = _child(node, part) if node else None
        if node is None:
            return depth
    return len(path)


def _position(root: Node, path: Path, at_key: bool) -> tuple[int, int]:
    """Line and column of the value at `path`, of its key, or of the nearest thing around it."""
    node = root
    for number, part in enumerate(path, 1):
        if at_key and number == len(path) and isinstance(part, str) and part in node.keys:
            return node.keys[part]
        child = _child(node, part)
        if child is None:
            break
        if child.value is None and isinstance(part, str) and part in node.keys:
            return node.keys[part]
        node = child
    return node.line, node.column


def apply_sets(merged: Merged, sets: Sequence[str]) -> list[Fault]:
    """Lay `key=value` settings over the document; engines are named: `engines.chat.replicas=2`."""
    faults = []
    for text in sets:
        try:
            _apply_set(merged, text)
        except _SetFault as fault:
            faults.append(Fault(SET_PLACE, 0, 0, "", f"{text}: {fault}", fault.hint))
    return faults


class _SetFault(Exception):
    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def _apply_set(merged: Merged, text: str) -> None:
    key, equals, written = text.partition("=")
    if not equals or not key.strip():
        raise _SetFault("is not key=value", "write engines.NAME.FIELD=VALUE")
    root, faults = parse(written)
    if faults:
        raise _SetFault(faults[0].message, "quote the value")
    value = root.plain() if root else None
    parts = key.strip().split(".")
    path: Path
    if parts[0] == "engines":
        index, rest = _named_engine(merged, parts[1:])
        holder, path = merged.document["engines"], ("engines", index)
        holder[index] = overlay(holder[index], _nested(rest, value))
    else:
        rest, path = parts, ()
        merged.document = overlay(merged.document, _nested(rest, value))
    merged.set_paths.append((*path, *_joined(rest)))


def _named_engine(merged: Merged, parts: list[str]) -> tuple[int, list[str]]:
    """The engine that the parts begin with (its name may hold dots), and the parts after its name."""
    for length in range(len(parts) - 1, 0, -1):
        index = merged.engine_index(".".join(parts[:length]))
        if index is not None:
            return index, parts[length:]
    name = parts[0] if parts else ""
    if merged.engine_index(".".join(parts)) is not None:
        raise _SetFault("names an engine but no field of it", "write engines.NAME.FIELD=VALUE")
    raise _SetFault(f'there is no engine "{name}"', did_you_mean(name, merged.engine_names))


def _joined(parts: Sequence[str]) -> Path:
    """The parts as a path: what follows args, env or metadata is one key, dots and all."""
    for number, part in enumerate(parts[:-1], 1):
        if part in _FREE_MAPS:
            return (*parts[:number], ".".join(parts[number:]))
    return tuple(parts)


def _nested(parts: Sequence[str], value: Any) -> dict[str, Any]:
    nested = value
    for part in reversed(_joined(parts)):
        nested = {part: nested}
    assert isinstance(nested, dict)
    return nested
