"""The journal of a SAGE_HOME: one JSON line per event, for `sage events`. Best effort; never the truth."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sage_reconcile.home import Home

MAX_BYTES = 4 * 1024 * 1024
"""Size at which the journal is moved to events.1.jsonl."""


def path_of(home: Home) -> Path:
    return home.root / "events.jsonl"


def append(home: Home, kind: str, subject: str, message: str) -> None:
    """Adds an event. `kind` is a word ("started", "failed"), `subject` a replica, a stack or "gateway".

    One short write in append mode: lines of several processes do not mix. A full disk loses the event.
    """
    event = {"at": round(time.time(), 3), "kind": kind, "subject": subject, "message": message}
    path = path_of(home)
    with contextlib.suppress(OSError):
        home.ensure()
        if path.exists() and path.stat().st_size > MAX_BYTES:
            path.replace(path.with_name("events.1.jsonl"))
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, json.dumps(event).encode() + b"\n")
        finally:
            os.close(handle)


def read(home: Home) -> Iterator[dict[str, Any]]:
    """All events, oldest first; a line that was cut short is left out."""
    path = path_of(home)
    for one in (path.with_name("events.1.jsonl"), path):
        with contextlib.suppress(OSError), one.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)
