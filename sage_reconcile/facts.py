"""What was measured before, kept in SAGE_HOME/facts, a small file each. Deleted, only estimates change."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.facts import Fact
from sage_reconcile.supervisor.records import write_atomic
from sage_reconcile.supervisor.regular import read_regular

KEEP = 500
"""Facts that are kept, the newest: each edit of a launch makes another fingerprint."""


def read(home: Home) -> tuple[Fact, ...]:
    """All facts, sorted by engine and date. What cannot be read is left out: it only explained."""
    found = []
    for path in _paths(home):
        with contextlib.suppress(OSError, ValueError):
            found.append(codec.decode(read_regular(path), Fact))
    return tuple(sorted(found, key=lambda fact: (fact.engine, fact.at, fact.key)))


def write(home: Home, facts: Iterable[Fact]) -> None:
    """Keeps these facts. A full disk must not undo an apply: failures are ignored."""
    facts = tuple(facts)
    with contextlib.suppress(OSError):
        for fact in facts:
            write_atomic(_path(home, fact), codec.encode(fact) + b"\n")
        if facts:
            _prune(home)


def note(home: Home, empty: Fact, what: str, seconds: float) -> None:
    """Keeps how long one thing took: `what` is sleep, wake or stop."""
    known = next((fact for fact in read(home) if fact.key == empty.key), empty)
    seconds = round(seconds, 2)
    if what == "stop":
        known = replace(known, stop_seconds=seconds)
    else:
        slept = what == "sleep"
        known = replace(known, sleep_seconds=seconds) if slept else replace(known, wake_seconds=seconds)
    write(home, [replace(known, at=empty.at)])


def forget(home: Home, is_meant: Callable[[Fact], bool]) -> tuple[Fact, ...]:
    """Deletes the facts that are meant, and gives them. Raises OSError."""
    gone = tuple(fact for fact in read(home) if is_meant(fact))
    for fact in gone:
        _path(home, fact).unlink(missing_ok=True)
    return gone


def _prune(home: Home) -> None:
    known = sorted(read(home), key=lambda fact: fact.at)
    for fact in known[:-KEEP]:
        _path(home, fact).unlink(missing_ok=True)


def _paths(home: Home) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(home.facts.glob("*.json"))
    return []


def _path(home: Home, fact: Fact) -> Path:
    gpu = hashlib.sha256(f"{fact.gpu} {fact.gpu_total_mib}".encode()).hexdigest()[:8]
    return home.facts / f"{fact.fingerprint}-{gpu}.json"
