"""What mends an engine that did not start: edits of its entry in the stack file, or advice. Pure values."""

from dataclasses import dataclass

from sage_reconcile.model.desired import ArgValue

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """One value of an engine's entry to be written: `path` is relative to the entry.

    With `rename` the last key of the path gets that name instead, and keeps its value.
    """

    path: Path
    value: ArgValue = None
    rename: str = ""


@dataclass(frozen=True, slots=True)
class Fix:
    """What mends one engine. `why` is one line for people; without `edits`, `instead` says what to do."""

    engine: str
    cause: str
    why: str = ""
    edits: tuple[Edit, ...] = ()
    instead: str = ""
