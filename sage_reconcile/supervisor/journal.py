"""The journal of a SAGE_HOME: one JSON line per event. Best effort, and never the truth."""

import contextlib
import json
import os
import time

from sage_reconcile.supervisor.regular import open_regular

NAME = "events.jsonl"
OLD_NAME = "events.1.jsonl"
MAX_BYTES = 4 * 1024 * 1024
"""Size at which the journal is moved to OLD_NAME."""


def append(home: str, kind: str, subject: str, message: str) -> None:
    """Adds an event. `kind` is a word ("ready", "failed"), `subject` a replica, a stack or "gateway".

    One short write in append mode, so that lines of several processes do not mix. A full disk loses it.
    """
    event = {"at": round(time.time(), 3), "kind": kind, "subject": subject, "message": message}
    path = os.path.join(home, NAME)
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_size > MAX_BYTES:
                os.replace(path, os.path.join(home, OLD_NAME))
        handle = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, json.dumps(event).encode() + b"\n")
        finally:
            os.close(handle)
