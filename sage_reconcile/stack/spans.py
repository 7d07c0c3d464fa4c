"""YAML text to a tree of places: where each key and value begins and ends, for edits of the text itself.

Other than yamltree, which is read at every save, it keeps how the text is written: blocks, braces, aliases.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Span:
    """One node of the text: `kind` is "map", "list", "scalar" or "alias"; offsets count characters.

    `entries` are the keys and values of a map in the order of the text, `items` the values of a list.
    `column` is that of its first character, from 0.
    """

    kind: str
    start: int
    end: int
    column: int
    text: str = ""
    is_flow: bool = False
    entries: list[tuple["Span", "Span"]] = field(default_factory=list)
    items: list["Span"] = field(default_factory=list)

    def entry(self, key: str) -> tuple["Span", "Span"] | None:
        return next((pair for pair in self.entries if pair[0].text == key), None)

    @property
    def last(self) -> int:
        """Where what is written of it ends: to the parser a block ends where the next thing begins."""
        if self.is_flow or self.kind in ("scalar", "alias"):
            return self.end
        inner = [value.last for _, value in self.entries] + [item.last for item in self.items]
        return max(inner, default=self.start)


def spans(text: str) -> Span | None:
    """The tree of the one document in `text`, which is good YAML; None where it is empty."""
    root: list[Span] = []
    parents: list[tuple[Span, list[Span]]] = []

    def add(span: Span) -> None:
        (parents[-1][1] if parents else root).append(span)

    for event in yaml.parse(text, Loader=_LOADER):
        match event:
            case yaml.ScalarEvent():
                add(_leaf(event, "scalar", event.value, text))
            case yaml.AliasEvent():
                add(_leaf(event, "alias", event.anchor, text))
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                kind = "map" if isinstance(event, yaml.MappingStartEvent) else "list"
                mark = event.start_mark
                span = Span(kind, mark.index, mark.index, mark.column, is_flow=bool(event.flow_style))
                parents.append((span, []))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                span, children = parents.pop()
                span.end = event.end_mark.index
                if span.kind == "map":
                    span.entries = list(zip(children[::2], children[1::2], strict=True))
                else:
                    span.items = children
                add(span)
    return root[0] if root else None


def _leaf(event: Any, kind: str, value: str, text: str) -> Span:
    start, end = event.start_mark.index, event.end_mark.index
    if getattr(event, "style", None) in ("|", ">"):
        end = start + len(text[start:end].rstrip())
    return Span(kind, start, end, event.start_mark.column, value)
