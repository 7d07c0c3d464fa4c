"""Errors, named by what the caller does next: fix the file, free something, give up, or try again later."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault of a file. `line` and `column` count from 1; 0 means that the fault has no place."""

    path: str
    line: int
    column: int
    field: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        field = f"{self.field}: " if self.field else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}: error: {field}{self.message}{hint}"


class ReconcileError(Exception):
    """Anything that sage tells its user; str() is the whole message."""


class StackError(ReconcileError):
    """The stack file is at fault; `faults` holds every one of them, in file order."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))


class BlockedError(ReconcileError):
    """Something outside the file is in the way: a port, a lock, memory, a changed fact."""


class PermanentError(ReconcileError):
    """Trying the same again gives the same."""


class TransientError(ReconcileError):
    """May go away; try again after `delay` seconds."""

    def __init__(self, message: str, delay: float = 1.0) -> None:
        self.delay = delay
        super().__init__(message)
