"""Which request paths are looked at: those that everybody reads the same way."""

import re
from urllib.parse import unquote

# More layers of percent-encoding than anybody needs who does not hide something.
MAX_LAYERS = 4

# "." and ".." as a whole segment, an empty segment, or a backslash, which some read as "/".
_AMBIGUOUS = re.compile(r"//|\\|/\.{1,2}(?:[/;]|$)")


def is_ambiguous(raw_path: bytes) -> bool:
    """Whether a path, as it came or with its percent-encoding undone (also repeatedly), has dot segments,
    doubled slashes or backslashes: an engine might take it for another path than the gateway did."""
    path = raw_path.decode("latin-1")
    for _ in range(MAX_LAYERS):
        if _AMBIGUOUS.search(path):
            return True
        plain = unquote(path)
        if plain == path:
            return False
        path = plain
    return True
