"""The routing file: read at start and whenever it changes; the last good table is kept."""

import hashlib
import os
import time
from pathlib import Path

import msgspec

from gateway import line, pick
from sage_reconcile.model.routing import RoutingTable

SUPPORTED_VERSION = 1


class TableSource:
    """`table` is the last good one and `digest` the first 12 hex digits of the sha256 of its bytes.

    `fault` says why the file as it is now is not served by, or is "". `loaded_at` is in Unix seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = RoutingTable()
        self.digest = ""
        self.fault = "not read yet"
        self.loaded_at = int(time.time())
        self._seen: tuple[int, int, int] | None = None

    def refresh(self) -> bool:
        """Reads the file if it changed. True if `table` is a new one."""
        try:
            status = os.stat(self.path)
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen == self._seen:
                return False
            data = self.path.read_bytes()
        except OSError as error:
            self._seen = None
            self.fault = f"{self.path}: {error.strerror}: apply a stack to make it"
            return False
        self._seen = seen
        digest = hashlib.sha256(data).hexdigest()[:12]
        try:
            table = _decode(data)
        except ValueError as error:
            self.fault = f"{self.path}: {error}: the last good table stays in use"
            return False
        self.fault = ""
        if digest == self.digest:
            return False
        self.table, self.digest, self.loaded_at = table, digest, int(time.time())
        return True


def _decode(data: bytes) -> RoutingTable:
    table = msgspec.json.decode(data, type=RoutingTable)
    if table.version != SUPPORTED_VERSION:
        raise ValueError(f"version {table.version} is not known to this gateway; upgrade and restart it")
    known = {backend.id for backend in table.backends}
    for route in table.routes:
        for policy, possible in ((route.policy, pick.POLICIES), (route.queue_policy, line.POLICIES)):
            if policy not in possible:
                raise ValueError(f"route '{route.name}' asks for policy '{policy}', which is not known here")
        missing = sorted(set(route.backends) - known)
        if missing:
            raise ValueError(f"route '{route.name}' names backends that are not in the table: {missing}")
    return table
