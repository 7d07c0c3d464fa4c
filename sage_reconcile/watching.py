"""Who watches what: notes that die with their watcher, so that other commands can say what it will undo."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sage_reconcile.home import Home


@dataclass(frozen=True, slots=True)
class Watching:
    """One live watcher. `stack` is "" until it has read its file once."""

    pid: int
    stack: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"sage watch {' '.join(self.files)} (process {self.pid})"


class Note:
    """The note of this process; a lock on it says that it still holds."""

    def __init__(self, handle: int | None, files: Sequence[Path]) -> None:
        self._handle = handle
        self._files = [str(file) for file in files]
        self.tell("")

    def tell(self, stack: str) -> None:
        """Says which stack the files are now. A full disk loses the note, not the watcher."""
        if self._handle is None:
            return
        content = {"pid": os.getpid(), "stack": stack, "files": self._files}
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(content).encode(), 0)


@contextlib.contextmanager
def announced(home: Home, files: Sequence[Path]) -> Iterator[Note]:
    """While it lasts, `watchers` finds this process."""
    path = _folder(home) / f"{os.getpid()}.json"
    handle: int | None = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield Note(handle, files)
    finally:
        path.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def watchers(home: Home) -> tuple[Watching, ...]:
    """The live watchers of this SAGE_HOME, by process id."""
    found = []
    for path in _folder(home).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            if _is_held(file.fileno()):
                note = json.load(file)
                found.append(Watching(int(note["pid"]), str(note["stack"]), tuple(note["files"])))
    return tuple(sorted(found, key=lambda one: one.pid))


def left_behind(home: Home, files: Sequence[Path]) -> tuple[int, ...]:
    """The process ids of watchers of one of these files that were killed: their notes are still there.

    Takes those notes away, and those of other files' killed watchers too.
    """
    wanted = {str(file) for file in files}
    found = []
    for path in _folder(home).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            if _is_held(file.fileno()):
                continue
            path.unlink(missing_ok=True)
            note = json.load(file)
            if wanted.intersection(note["files"]):
                found.append(int(note["pid"]))
    return tuple(sorted(found))


def _is_held(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _folder(home: Home) -> Path:
    return home.root / "watch"
