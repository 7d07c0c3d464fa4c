"""Texts that strangers wrote (engines, model names, causes), made safe to show on a terminal."""

import re

_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
"""Colours, cursor moves, titles and links: nothing is lost without them."""
_BREAKS = re.compile(r"[\r\n]+")
# Control characters but for tab, and the marks that turn the direction of what follows them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """On one line, without what a terminal would obey: a text must not move the cursor or forge a line."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", _BREAKS.sub(" ", _SEQUENCE.sub("", text)))


def lines(text: str) -> str:
    """The same for a piece of a log, whose lines stay lines; a lone carriage return ends one too."""
    return "\n".join(one_line(line) for line in re.split(r"\r*\n|\r+", text))
