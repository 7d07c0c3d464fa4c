"""The pages under test, and what can be read out of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

_FENCE = re.compile(
    r"^(?:<!-- (?P<label>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
_INLINE = re.compile(r"`(sage [^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `label` is the comment on the line before it, "" without one."""

    label: str
    language: str
    text: str


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[Block]:
    found = _FENCE.finditer(text_of(name))
    return [Block(match["label"] or "", match["language"], match["text"]) for match in found]


def block(name: str, label: str) -> str:
    """The text of the one block with this label."""
    [found] = [one.text for one in blocks(name) if one.label == label]
    return found


def links(name: str) -> list[str]:
    """Targets of links outside of fenced blocks."""
    return [match["target"] for match in _LINK.finditer(_FENCE.sub("", text_of(name)))]


def anchors(name: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(name), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(name: str) -> Iterator[str]:
    """Every command line of sage on a page: inline code, indented blocks, fenced blocks."""
    text = text_of(name)
    for match in _INLINE.finditer(_FENCE.sub("", text)):
        yield match[1]
    for line in text.splitlines():
        match = re.match(r"^(?: {4,}|- run: )(?:- run: )?(?:\$ )?(sage [a-z].*)$", line)
        if match:
            yield match[1]
