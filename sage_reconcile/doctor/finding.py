"""What a check found, as a value."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """WARNING: it may go wrong, or costs something. FAULT: something cannot work."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: about what, how it is, and what to do next ("" where nothing is to be done)."""

    about: str
    verdict: Verdict
    message: str
    next: str = ""


def ok(about: str, message: str) -> Finding:
    return Finding(about, Verdict.OK, message)


def warning(about: str, message: str, next: str) -> Finding:
    return Finding(about, Verdict.WARNING, message, next)


def fault(about: str, message: str, next: str) -> Finding:
    return Finding(about, Verdict.FAULT, message, next)
