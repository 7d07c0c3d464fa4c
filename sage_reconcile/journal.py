"""What happened, for `sage events`: written by applies, watchers and supervisors."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from sage_reconcile.home import Home
from sage_reconcile.supervisor import journal
from sage_reconcile.supervisor.regular import open_regular


def append(home: Home, kind: str, subject: str, message: str) -> None:
    """Adds an event, see supervisor.journal; failures are nobody's business."""
    with contextlib.suppress(OSError):
        home.ensure()
    journal.append(str(home.root), kind, subject, message)


def read(home: Home) -> Iterator[dict[str, Any]]:
    """All events, oldest first; a line that is none (one that was cut short) is left out."""
    for name in (journal.OLD_NAME, journal.NAME):
        with contextlib.suppress(OSError), open(open_regular(home.root / name, os.O_RDONLY), "rb") as file:
            for line in file:
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        yield event
