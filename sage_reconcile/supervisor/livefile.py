"""Live settings: replaced while the launch runs, by replacing live.json."""

import json
from pathlib import Path

from sage_reconcile.supervisor.order import Live, OrderError, parse_live


class LiveFile:
    """`live` is what holds now. Found by polling: a change is another inode, size or time of the file."""

    def __init__(self, path: Path, live: Live) -> None:
        self.path = path
        self.live = live
        self._signature: tuple[int, int, int] | None = None

    def poll(self) -> str:
        """Takes a new file. Gives what is wrong with it, or ""; a bad file changes nothing."""
        try:
            status = self.path.stat()
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            if signature == self._signature:
                return ""
            data = self.path.read_bytes()
        except OSError:
            return ""
        self._signature = signature
        try:
            self.live = parse_live(json.loads(data))
        except (OrderError, ValueError) as error:
            return f"live.json is not taken: {error}"
        return ""
