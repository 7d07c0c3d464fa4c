"""The routing table as a file that the gateway watches, replaced in one step: no reader sees half of it."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from sage_reconcile.model import codec
from sage_reconcile.model.routing import RoutingTable


def publish(path: Path, table: RoutingTable) -> bool:
    """Writes the table, mode 0600, through to the disk; False when the file holds these very bytes already.

    Raises OSError; the old table is in place then.
    """
    data = codec.encode(table)
    with contextlib.suppress(OSError):
        if path.read_bytes() == data:
            return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its mode is 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)
    return True


def read(path: Path) -> RoutingTable | None:
    """The published table; None when it is missing, broken or of another version."""
    try:
        table = codec.decode(path.read_bytes(), RoutingTable)
    except (OSError, ValueError):
        return None
    return table if table.version == RoutingTable().version else None


def digest(path: Path) -> str:
    """The first 12 hex digits of the SHA-256 of the file, "" when it is missing."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return ""


def _sync_folder(folder: Path) -> None:
    """The new name outlives a power cut only when the folder is written too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
