"""What one worker tells whoever drains a backend: $SAGE_HOME/run/gateway/<pid>.json."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger("gateway")


class WorkerRecord:
    """{"pid", "digest" of the table served by, "in_flight": {id of a draining or gone backend: count}}."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{os.getpid()}.json"
        self._written = b""

    def write(self, digest: str, in_flight: Mapping[str, int]) -> None:
        """Replaces the record atomically if it says something else, or is gone."""
        record = {"pid": os.getpid(), "digest": digest, "in_flight": dict(in_flight)}
        data = json.dumps(record, sort_keys=True).encode()
        if data == self._written and self._path.exists():
            return
        partial = self._path.with_suffix(".partial")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(self._path)
        except OSError as error:
            logger.error("cannot write %s: %s", self._path, error.strerror)
        else:
            self._written = data

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
