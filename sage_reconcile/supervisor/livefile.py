"""Live settings: replaced while the launch runs, by replacing live.json."""

import json
import stat
from pathlib import Path

from sage_reconcile.supervisor.order import Live, OrderError, parse_live
from sage_reconcile.supervisor.regular import read_regular


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
            is_plain = stat.S_ISREG(status.st_mode)
            data = read_regular(self.path) if is_plain else b""
        except OSError:
            return ""
        self._signature = signature
        if not is_plain:
            return "live.json is not taken: it is not a plain file"
        try:
            self.live = parse_live(json.loads(data))
        except (OrderError, ValueError) as error:
            return f"live.json is not taken: {error}"
        except RecursionError:
            return "live.json is not taken: it is nested too deeply"
        return ""
