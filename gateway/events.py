"""What the gateway adds to the events of its SAGE_HOME, which `sage events` shows. Best effort.

Do not import sage_reconcile.supervisor.journal instead: the gateway knows nothing of what starts engines.
"""

import contextlib
import json
import os
import time

_NAME = "events.jsonl"


def append(home: str, kind: str, message: str) -> None:
    """Adds an event about the gateway, one line in one write. A full disk loses it."""
    event = {"at": round(time.time(), 3), "kind": kind, "subject": "gateway", "message": message}
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        handle = os.open(os.path.join(home, _NAME), flags, 0o600)
        try:
            os.write(handle, json.dumps(event).encode() + b"\n")
        finally:
            os.close(handle)
