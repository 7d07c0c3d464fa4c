"""$SAGE_HOME/logs/access.jsonl: a line of JSON for each request, never with a prompt, a reply or a key in it.

The request path appends a record to a list; the lines are made and written a few times a second, by one write
for all. Workers share the file. It is rotated as engine.log is: access.jsonl.1 is the newest of three old
ones. A log that cannot be written costs lines, which are counted, and never a request.
"""

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.meters import Meters

logger = logging.getLogger("gateway")

MAX_BYTES = 50 << 20
KEPT = 3
# So many records wait at most: with more than that in a quarter of a second, they are written at once.
MAX_PENDING = 8192
# Clients choose these texts; longer ones are cut.
MAX_TEXT = 256


class Access(msgspec.Struct, gc=False):
    """One request, when it is over. docs/gateway-metrics.md describes the fields; `ts` is when it came.

    Times are in milliseconds since its last byte came, None where there was no such moment. `src` says who
    answered (engine or sage), `backend` is `engine#replica`, `key` the name of the API key and never the key.
    """

    ts: float
    request_id: str
    method: str
    path: str
    model: str
    status: int
    src: str = "engine"
    backend: str = ""
    key: str = ""
    client: str = ""
    ms: float = 0.0
    first_byte_ms: float | None = None
    queued_ms: float = 0.0
    held_ms: float = 0.0
    retries: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stream: bool = False
    error: str = ""


class AccessLog:
    """The lines of one worker. Lost ones are counted in `meters.numbers.access_log_lost`."""

    def __init__(self, path: Path, meters: Meters, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._meters = meters
        self._max_bytes = max_bytes
        self._pending: list[Access] = []
        self._encoder = msgspec.json.Encoder()
        self._descriptor: int | None = None
        self._inode = 0
        self._is_torn = False
        self._lost = 0

    def add(self, record: Access) -> None:
        """Takes a record; costs the append."""
        self._pending.append(record)
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since. Raises nothing."""
        if not self._pending:
            return
        records, self._pending = self._pending, []
        data = self._encode(records)
        try:
            written = self._write(data)
        except OSError as error:
            self._lose(len(records), error.strerror or type(error).__name__)
            self._close()
            return
        if written < len(data):
            self._is_torn = self._is_torn or (written > 0 and not data[:written].endswith(b"\n"))
            self._lose(len(records) - data[:written].count(b"\n"), "the disk took only a part")
        elif self._lost:
            logger.warning("%s is written again; %d lines are lost", self.path, self._lost)
            self._lost = 0

    def close(self) -> None:
        """Writes the last lines. The log may be used again after it."""
        self.flush()
        self._close()

    def _encode(self, records: list[Access]) -> bytes:
        for record in records:
            # Whole microseconds: the other digits of a float are noise, and bytes.
            record.ms = record.ms * 1000 // 1 / 1000
            if record.first_byte_ms:
                record.first_byte_ms = record.first_byte_ms * 1000 // 1 / 1000
            if record.queued_ms:
                record.queued_ms = record.queued_ms * 1000 // 1 / 1000
            if record.held_ms:
                record.held_ms = record.held_ms * 1000 // 1 / 1000
            if len(record.model) + len(record.request_id) + len(record.path) > MAX_TEXT:
                _change_texts(record, lambda text: text[:MAX_TEXT])
        try:
            return self._encoder.encode_lines(records)
        except UnicodeEncodeError:
            # JSON may name half of a surrogate pair as a model; UTF-8 has no bytes for it.
            for record in records:
                _change_texts(record, lambda text: text.encode("utf-8", "replace").decode())
            return self._encoder.encode_lines(records)

    def _write(self, data: bytes) -> int:
        """How many bytes the file took. A line that was cut off before ends first. Raises OSError."""
        descriptor = self._open()
        start = b"\n" if self._is_torn else b""
        written = os.write(descriptor, start + data) - len(start)
        self._is_torn = False
        return written

    def _open(self) -> int:
        """The file at the path now, rotated if it is full. Raises OSError."""
        if self._descriptor is not None and not self._is_current():
            self._close()
        descriptor = self._reopened() if self._descriptor is None else self._descriptor
        status = os.fstat(descriptor)
        if status.st_size >= self._max_bytes and stat.S_ISREG(status.st_mode) and self._rotate():
            self._close()
            descriptor = self._reopened()
        return descriptor

    def _is_current(self) -> bool:
        """Whether the open file is still at the path: another worker rotates it, or a person moves it."""
        try:
            return os.stat(self.path).st_ino == self._inode
        except OSError:
            return False

    def _reopened(self) -> int:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Non-blocking, as the path may lead to a pipe: then a reader that is slow costs lines, not requests.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self.path, flags, 0o600)
        status = os.fstat(self._descriptor)
        self._inode, self._is_torn = status.st_ino, self._is_torn and status.st_size > 0
        return self._descriptor

    def _rotate(self) -> bool:
        """Gives the file its number; False if another worker is at it. Raises OSError."""
        beside = self.path.with_name(f"{self.path.name}.lock")
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_current():
                for number in range(KEPT - 1, -1, -1):
                    older = self._numbered(number)
                    if older.exists():
                        older.replace(self._numbered(number + 1))
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(lock)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def _lose(self, lines: int, reason: str) -> None:
        self._meters.numbers.access_log_lost += lines
        if not self._lost:
            logger.error("cannot write %s: %s; lines are lost until it can be written", self.path, reason)
        self._lost += lines

    def _close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = None


def _change_texts(record: Access, change: Callable[[str], str]) -> None:
    record.model, record.request_id = change(record.model), change(record.request_id)
    record.path = change(record.path)
