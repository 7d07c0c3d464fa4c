"""The end of a log file, and what is added to it."""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

POLL_S = 0.2

Follow = Annotated[bool, Parameter(name=["--follow", "-f"], negative="", help="Go on until Ctrl-C.")]
Lines = Annotated[
    int,
    Parameter(
        name=["--lines", "-n"], validator=validators.Number(gte=0), help="How many lines to begin with."
    ),
]


def last_lines(path: Path, count: int) -> tuple[str, int]:
    """The last `count` lines of a file, and the offset in bytes at which they end."""
    with path.open("rb") as file:
        lines = deque(file, maxlen=max(count, 0))
        return b"".join(lines).decode(errors="replace"), file.tell()


def follow(path: Path, offset: int) -> Iterator[str]:
    """What is written after `offset`, as it comes, also after the file was replaced or cut; never ends."""
    place = path.stat().st_ino
    while True:
        try:
            status = path.stat()
            if status.st_ino != place or status.st_size < offset:
                place, offset = status.st_ino, 0
            if status.st_size > offset:
                with path.open("rb") as file:
                    file.seek(offset)
                    more = file.read()
                offset += len(more)
                yield more.decode(errors="replace")
        except FileNotFoundError:
            # Between the old file and the new one.
            pass
        time.sleep(POLL_S)
