"""The engine's output on disk: rotated by size, reopened when deleted, never in the engine's way."""

import os
import re
from collections import deque
from pathlib import Path

from sage_reconcile.supervisor import records
from sage_reconcile.supervisor.regular import open_regular

TAIL_BYTES = 64 * 1024
# Seconds between two times that lost output is told of.
QUIET = 10.0
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class EngineLog:
    """engine.log, engine.log.1 .. engine.log.<keep> and, of the attempt before, previous.log.

    A disk that takes no more costs output, not the engine: what could not be written is counted, and the
    first line that fits again says so. The last TAIL_BYTES are kept in memory: a verdict needs no disk.
    """

    def __init__(self, directory: Path, max_bytes: int, keep: int) -> None:
        self.path = directory / "engine.log"
        self.max_bytes = max_bytes
        self.keep = keep
        self._descriptor: int | None = None
        self._inode = 0
        self._size = 0
        self._dropped = 0
        self._reason = ""
        self._loss = ""
        self._quiet_until = 0.0
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0

    def take_loss(self, now: float) -> str:
        """Why output was lost since the last call, "" where none was. `now` in seconds; a disk that is nearly
        full loses some again and again, and is told of every ten seconds."""
        reason, self._loss = self._loss, ""
        if not reason or now < self._quiet_until:
            return ""
        self._quiet_until = now + QUIET
        return reason

    def begin(self, header: str) -> None:
        """Starts the log of one attempt; that of the attempt before becomes previous.log."""
        self._close()
        try:
            self.path.replace(self.path.with_name("previous.log"))
        except OSError:
            pass  # none yet, or deleted: the new log matters more
        self._tail.clear()
        self._tail_bytes = 0
        self.note(header)

    def note(self, text: str) -> None:
        """A line of the supervisor's own; not part of the tail."""
        self._put(f"--- sage: {text} ---\n".encode(errors="replace"))

    def write(self, data: bytes) -> None:
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())
        self._put(data)

    def tail(self) -> list[str]:
        """The last lines of this attempt, without colours; a progress bar's carriage returns end lines."""
        text = COLOUR.sub("", b"".join(self._tail)[-TAIL_BYTES:].decode(errors="replace"))
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    def upkeep(self) -> None:
        """Follows the path, not the file: where somebody deleted or moved the log, a new one is opened."""
        if self._descriptor is None:
            return
        try:
            is_ours = os.stat(self.path).st_ino == self._inode
        except OSError:
            is_ours = False
        if not is_ours:
            self._close()
            self._put(b"")

    def _put(self, data: bytes) -> None:
        if self._dropped:
            count, reason = self._dropped, self._reason
            notice = f"--- sage: {count} bytes of output are missing here: {reason} ---\n".encode()
            if self._append(notice) < len(notice):
                self._dropped += len(data)
                return
            self._dropped = 0
        self._dropped += len(data) - self._append(data)

    def _append(self, data: bytes) -> int:
        """How many bytes went to disk; `_reason` says why not all."""
        done = 0
        try:
            descriptor = self._open_for(len(data))
            while done < len(data):
                done += os.write(descriptor, data[done:])
        except OSError as error:
            self._reason = self._loss = error.strerror or type(error).__name__
        self._size += done
        return done

    def _open_for(self, length: int) -> int:
        if self._descriptor is not None and self._size and self._size + length > self.max_bytes:
            self._rotate()
        if self._descriptor is None:
            records.ensure_directory(self.path.parent)
            self._descriptor = open_regular(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            status = os.fstat(self._descriptor)
            self._inode, self._size = status.st_ino, status.st_size
        return self._descriptor

    def _rotate(self) -> None:
        self._close()
        if self.keep == 0:
            self.path.unlink(missing_ok=True)
            return
        for number in range(self.keep - 1, -1, -1):
            older = self.path.with_name(f"engine.log.{number}") if number else self.path
            if older.exists():
                older.replace(self.path.with_name(f"engine.log.{number + 1}"))

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None
