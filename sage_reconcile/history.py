"""What was applied, when, from which commit, and how it ended: for `sage history` and `sage rollback`."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home

KEEP = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One apply. `document` is the merged stack with its references as written; `at` in epoch seconds."""

    number: int
    at: float
    stack: str
    digest: str
    commit: str
    result: str
    summary: str
    base: str
    document: dict[str, Any]
    note: str = ""


def digest_of(document: dict[str, Any]) -> str:
    """12 hex digits of the document's canonical JSON."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]


def record(home: Home, entry: Entry) -> None:
    """Appends an entry; its number is given here. A full disk must not undo an apply: failures are ignored,
    the caller has nothing better to do about them."""
    folder = home.history / entry.stack
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = _numbers(folder)
        number = max(known, default=0) + 1
        values = {name: getattr(entry, name) for name in Entry.__slots__} | {"number": number}
        part = folder / f".{number}.part"
        part.write_text(json.dumps(values, indent=1), encoding="utf-8")
        part.chmod(0o600)
        part.replace(folder / f"{number}.json")
        for old in known[:-KEEP]:
            (folder / f"{old}.json").unlink(missing_ok=True)


def entries(home: Home, stack: str | None = None) -> tuple[Entry, ...]:
    """All entries, of one stack or of all, oldest first. What cannot be read is left out."""
    folders = [home.history / stack] if stack else sorted(p for p in home.history.glob("*") if p.is_dir())
    found = []
    for folder in folders:
        for number in _numbers(folder):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(Entry(**json.loads((folder / f"{number}.json").read_text(encoding="utf-8"))))
    return tuple(sorted(found, key=lambda entry: entry.at))


def entry_to_return_to(home: Home, stack: str, number: int | None) -> Entry:
    """Entry `number`, or the newest that was applied whole and differs from what was applied last.

    Raises PermanentError when there is none.
    """
    known = entries(home, stack)
    if number is not None:
        found = next((entry for entry in known if entry.number == number), None)
        if found is None:
            raise PermanentError(f"stack {stack} has no entry {number} in its history; see `sage history`")
        return found
    last = known[-1] if known else None
    for entry in reversed(known):
        if entry.result == "done" and last is not None and entry.digest != last.digest:
            return entry
    raise PermanentError(f"the history of stack {stack} holds nothing earlier to return to")


def commit_of(path: Path) -> str:
    """The checkout's git commit, read from .git itself; "" where there is none."""
    for folder in path.absolute().parents:
        head = folder / ".git" / "HEAD"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = head.read_text().strip()
            if not text.startswith("ref: "):
                return text[:12]
            reference = folder / ".git" / text[5:]
            if reference.exists():
                return reference.read_text().strip()[:12]
            return _packed(folder / ".git" / "packed-refs", text[5:])
    return ""


def _packed(path: Path, reference: str) -> str:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.endswith(f" {reference}"):
                return line[:12]
    return ""


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())
