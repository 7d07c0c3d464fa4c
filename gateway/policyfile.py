"""The policy that an administrator sets for all lines of a gateway, shared among its workers by a file."""

import os
from pathlib import Path

from gateway.line import POLICIES


class PolicyFile:
    """`policy` is the one set, or "" for what the routing table says."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = (0, 0)
        self.policy = ""

    def refresh(self) -> bool:
        """Reads the file if it changed. True if `policy` is another one."""
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_ino)
            if seen == self._seen:
                return False
            text = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            seen, text = (0, 0), ""
        before, self._seen = self.policy, seen
        self.policy = text if text in POLICIES else ""
        return self.policy != before

    def write(self, policy: str) -> None:
        """Sets the policy for every worker. Raises OSError."""
        if not policy:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self._path.with_suffix(f".{os.getpid()}")
        partial.write_text(policy + "\n", encoding="utf-8")
        partial.replace(self._path)
