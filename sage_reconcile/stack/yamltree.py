"""YAML text to a tree of nodes with places. With spans.py the only importer of the YAML parser.

The parser's events are composed here, not by the library, for three reasons: every key and value keeps its
line and column at no cost until a fault needs it, duplicate keys and alias bombs are seen while reading,
and scalars follow YAML 1.2 (`on`, `no` and `1:30` are text). libyaml's parser is 25 times faster than a pure
Python one, which is what lets thousands of engines be checked on every save.
"""

import re
from typing import Any

import yaml  # type: ignore[import-untyped]

from sage_reconcile.stack.problems import describe

Scalar = str | int | float | bool | None

MAX_DEPTH = 40
MAX_ALIASED = 100_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Looked for here because the parser counts bytes, not characters, to where it met one.
_UNREADABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_MAX_INT_DIGITS = 300
_CORE = "tag:yaml.org,2002:"
_CORE_TAGS = {_CORE + name for name in ("str", "int", "float", "bool", "null", "map", "seq")}


class YamlFault(Exception):
    """One fault of the text; `line` and `column` count from 1."""

    def __init__(self, line: int, column: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.line, self.column, self.message, self.hint = line, column, message, hint


class Node:
    """One value with its place. `value` is a scalar, a list of nodes or a map of nodes.

    `keys` holds the place of each key of a map. `weight` counts the nodes below, aliases expanded.
    """

    __slots__ = ("column", "keys", "line", "value", "weight")

    def __init__(self, value: Any, line: int, column: int) -> None:
        self.value = value
        self.line, self.column = line, column
        self.weight = 1
        self.keys: dict[str, tuple[int, int]] = {}

    def plain(self) -> Any:
        """The value as dicts, lists and scalars; aliased parts are copies."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def parse(text: str) -> tuple[Node | None, list[YamlFault]]:
    """The tree of one document (None where it is empty or cannot be read) and every fault found in it."""
    composer = _Composer()
    unreadable = _UNREADABLE.search(text)
    if unreadable:
        return None, [_unreadable_character(text, unreadable.start())]
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            composer.feed(event)
    except YamlFault as fault:
        return None, [*composer.faults, fault]
    except yaml.MarkedYAMLError as error:
        return None, [*composer.faults, _syntax_fault(text, error)]
    return composer.root, composer.faults


def scalar(text: str) -> Scalar:
    """The value of a plain scalar by the core schema of YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) <= _MAX_INT_DIGITS:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(
            text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".n", "n")
        )
    return text


class _Composer:
    """Builds the tree from events with a stack of its own, so that deep nesting is a fault, not a crash."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.faults: list[YamlFault] = []
        self._open: list[tuple[Node, list[Node]]] = []
        self._anchors: dict[str, Node] = {}
        self._documents = 0
        self._aliased = 0

    def feed(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                self._add(self._scalar(event), event.anchor)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._start(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._end()
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _at(event, "a second document starts here", "one file is one stack: remove the ---")

    def _scalar(self, event: Any) -> Node:
        value: Scalar = event.value
        if event.tag is None:
            value = scalar(event.value) if event.implicit[0] else event.value
        elif event.tag != f"{_CORE}str":
            self._check_tag(event)
            value = scalar(event.value)
        return Node(value, event.start_mark.line + 1, event.start_mark.column + 1)

    def _check_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag not in _CORE_TAGS:
            self.faults.append(_at(event, f"the tag {event.tag} means nothing here", "remove the tag"))

    def _start(self, event: Any) -> None:
        self._check_tag(event)
        if len(self._open) >= MAX_DEPTH:
            raise _at(event, f"nested deeper than {MAX_DEPTH} levels")
        is_map = isinstance(event, yaml.MappingStartEvent)
        node = Node({} if is_map else [], event.start_mark.line + 1, event.start_mark.column + 1)
        if event.anchor:
            self._anchors[event.anchor] = node
        self._open.append((node, []))

    def _end(self) -> None:
        node, children = self._open.pop()
        node.weight += sum(child.weight for child in children)
        if isinstance(node.value, dict):
            self._fill(node, children)
        else:
            node.value = children
        self._add(node, None)

    def _alias(self, event: Any) -> None:
        node = self._anchors.get(event.anchor)
        if node is None:
            raise _at(event, f"the alias *{event.anchor} has no anchor &{event.anchor} before it")
        if any(node is parent for parent, _ in self._open):
            raise _at(event, f"the alias *{event.anchor} stands inside its own anchor")
        self._aliased += node.weight
        if self._aliased > MAX_ALIASED:
            raise _at(event, f"aliases expand to more than {MAX_ALIASED:,} values", "write the values out")
        self._add(node, None)

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = node
        if self._open:
            self._open[-1][1].append(node)
        else:
            self.root = node

    def _fill(self, node: Node, children: list[Node]) -> None:
        """Keys and values, which arrive in turn, to a map; what `<<` merges yields to the map's own keys."""
        merged: list[Node] = []
        for key, value in zip(children[::2], children[1::2], strict=True):
            if isinstance(key.value, dict | list):
                self.faults.append(
                    YamlFault(key.line, key.column, f"a key must be text, is {describe(key.value)}")
                )
                continue
            name = _key_text(key.value)
            if name == "<<":
                merged += self._merge_sources(value)
            elif name in node.keys:
                first = node.keys[name][0]
                self.faults.append(
                    YamlFault(
                        key.line, key.column, f'the key "{name}" is given twice', f"first on line {first}"
                    )
                )
            else:
                node.keys[name] = (key.line, key.column)
                node.value[name] = value
        for source in merged:
            for name, value in source.value.items():
                if name not in node.value:
                    node.value[name] = value
                    node.keys[name] = source.keys[name]

    def _merge_sources(self, value: Node) -> list[Node]:
        sources = value.value if isinstance(value.value, list) else [value]
        good = [source for source in sources if isinstance(source.value, dict)]
        if len(good) != len(sources):
            self.faults.append(YamlFault(value.line, value.column, "<< merges a map, or a list of maps"))
        return good


def _key_text(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _at(event: Any, message: str, hint: str = "") -> YamlFault:
    return YamlFault(event.start_mark.line + 1, event.start_mark.column + 1, message, hint)


def _unreadable_character(text: str, position: int) -> YamlFault:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return YamlFault(line, column, f"the control character U+{ord(text[position]):04X} is not allowed")


def _syntax_fault(text: str, error: Any) -> YamlFault:
    lines = text.splitlines() or [""]
    mark = error.problem_mark or error.context_mark
    if error.context_mark and mark.line >= len(lines):
        mark = error.context_mark
    number, column = mark.line, mark.column
    last = max((n for n, line in enumerate(lines) if line.strip()), default=0)
    if number > last:
        # The parser noticed at the end of the text; the last thing written is nearer to the fault.
        number, column = last, max(len(lines[last].rstrip()) - 1, 0)
    context = f" ({error.context})" if error.context else ""
    return YamlFault(
        number + 1,
        column + 1,
        f"not valid YAML: {error.problem}{context}",
        _syntax_hint(lines[number], error),
    )


def _syntax_hint(line: str, error: Any) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent:
        return "indent with spaces, not with tabs"
    if "${" in line and "{" in line.replace("${", ""):
        return 'inside { } a reference needs quotes: "${env:NAME}"'
    if "mapping values" in (error.problem or ""):
        return "check the indentation, and quote a value that holds ': '"
    if "cannot start any token" in (error.problem or ""):
        return "quote a value that starts with a special character"
    if "flow" in (error.context or ""):
        return "a bracket or brace is not closed, or a comma is missing"
    return ""
