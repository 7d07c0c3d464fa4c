"""Why a launch did not get ready, in words, from the records that its supervisor left."""

import json
from typing import Any

from sage_reconcile.apply.hands import LaunchFailed

GRACE = 5.0
"""Seconds beyond the supervisor's own timeout in which it says itself that the engine is late."""


def failure(record: dict[str, Any], tail: tuple[str, ...]) -> LaunchFailed:
    """Of a launch that has ended; `record` is its exit.json, `tail` the last lines where that has none."""
    if not record:
        return LaunchFailed("its supervisor is gone without a word; see `sage logs`", tail)
    code, number = record.get("code"), record.get("signal")
    how = f"killed by signal {number}" if number else f"exit code {code}" if code is not None else ""
    cause, hint = str(record.get("cause") or ""), str(record.get("hint") or "")
    detail = f" ({how})" if how and cause else ""
    what = f"the engine ended before it answered: {cause or how}{detail}" if how else cause
    advice = f"; {hint}" if hint else ""
    said = str(record.get("said") or "")
    return LaunchFailed(what + advice, tuple(record.get("tail") or ()), hint, cause, said)


def grace(record: dict[str, Any], timeout: float) -> float:
    """Seconds to wait beyond `timeout`: where the supervisor has the same one, it has the better words."""
    try:
        own = float(record["live"]["health"]["startup_timeout"])
    except (KeyError, TypeError, ValueError):
        return 0.0
    return GRACE if timeout >= own else 0.0


def late(timeout: float, probe: str) -> str:
    """What the supervisor would say; `timeout` in seconds, `probe` is what the last look gave."""
    return f"not ready within {timeout:g} s; its last probe: {probe or 'it has not answered yet'}"


def ended_late(record: dict[str, Any], reason: str) -> bytes:
    """exit.json of a launch that was stopped because it was late."""
    cause, _, hint = reason.partition("; ")
    return json.dumps(record | {"cause": cause, "hint": hint, "code": None, "signal": None}).encode() + b"\n"
