"""How one attempt ended, and the record of it."""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from sage_reconcile.supervisor import tree
from sage_reconcile.supervisor.redact import Redactor
from sage_reconcile.supervisor.verdicts import Verdict, verdict, waits_for

TAIL_LINES = 20
LINE_LENGTH = 1000


# In the hint of an end that is followed by no restart, because the attempts are used up.
GAVE_UP = "gave up: max_attempts"

# Reasons for which the engine is killed by its supervisor.
OURS = ("hung", "late", "wrong", "robbed")


class End(NamedTuple):
    """`reason` is "exited", "hung", "late", "wrong" (in its answer to the canary), "robbed" (of its port),
    "stopped" or "refused" (never ran).

    `message` says more about every reason but "exited"; `code` and `signal` are as of the main process, and
    None where it did not end by itself.
    """

    reason: str
    was_ready: bool
    pid: int | None = None
    code: int | None = None
    signal: int | None = None
    message: str = ""

    @property
    def summary(self) -> str:
        if self.reason == "exited":
            return f"killed by signal {self.signal}" if self.signal else f"exited with code {self.code}"
        return self.message

    def with_status(self, status: int | None) -> "End":
        """With what waitpid gave; None where the process was never reaped. How we killed it says nothing."""
        if status is None or self.reason in OURS:
            return self
        code = os.waitstatus_to_exitcode(status)
        return self._replace(code=code) if code >= 0 else self._replace(signal=-code)


def judge(end: End, tail: Sequence[str]) -> Verdict:
    """The cause of an end that nobody asked for, and what to do about it."""
    if end.reason == "refused":
        return Verdict(end.message, "check command, cwd and the runtime's python in the stack file")
    if end.reason == "late":
        cause, _, probe = end.message.partition("; ")
        if known := waits_for(tail):
            return Verdict(f"{cause}: {known.cause}", f"{probe}; {known.hint}", known.said)
        return Verdict(cause, f"{probe}; raise health.startup_timeout or read the log")
    if end.reason == "robbed":
        return Verdict(end.message, "end that process, or choose another port in the stack file")
    if end.reason == "wrong":
        return Verdict(end.message, "try another dtype or quantisation, or mend health.canary")
    if end.reason == "hung":
        return Verdict("hung", f"{end.message}; the log shows what it did last")
    return verdict(tail, end.code, end.signal)


def exit_record(
    launch: str, end: End, known: Verdict, tail: Sequence[str], redactor: Redactor
) -> dict[str, object]:
    """exit.json of one attempt; what the engine itself printed may hold secrets, so all text is cleaned."""
    return {
        "version": 1,
        "at": time.time(),
        "up": tree.uptime(),
        "launch": launch,
        "pid": end.pid,
        "code": end.code,
        "signal": end.signal,
        "was_ready": end.was_ready,
        "cause": redactor.clean(known.cause),
        "hint": redactor.clean(known.hint),
        "said": redactor.clean(known.said)[:LINE_LENGTH],
        "tail": [redactor.clean(line)[:LINE_LENGTH] for line in tail[-TAIL_LINES:]],
    }
