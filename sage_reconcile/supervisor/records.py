"""The JSON records of one launch. Only observations: losing them loses nothing."""

import json
import os
from pathlib import Path


def ensure_directory(directory: Path) -> None:
    """Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the file in one step, mode 0600: readers see the old or the new one.

    Raises OSError that names a file: of a full disk the kernel itself does not say which.
    """
    ensure_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        temporary.unlink(missing_ok=True)
        raise


class Records:
    """What should lie in the directory. A write that fails (disk full) is tried again at every upkeep."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._wanted: dict[str, bytes] = {}
        self._unwritten: set[str] = set()

    def put(self, name: str, plain: dict[str, object]) -> None:
        self._wanted[name] = json.dumps(plain).encode() + b"\n"
        self._write(name)

    def upkeep(self) -> None:
        """Writes what could not be written before and what was deleted since."""
        for name in self._wanted:
            # Not Path.exists: this is what a supervisor of an idle engine does all day.
            if name in self._unwritten or not os.path.exists(f"{self.directory}/{name}"):
                self._write(name)

    def _write(self, name: str) -> None:
        try:
            write_atomic(self.directory / name, self._wanted[name])
        except OSError:
            self._unwritten.add(name)
        else:
            self._unwritten.discard(name)
