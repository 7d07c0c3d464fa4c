"""Starts a supervisor, from any process of sage."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sage_reconcile.supervisor.order import mark_text

PROGRAM = Path(__file__).with_name("__main__.py")
# Generous: on a busy host a Python start may take seconds.
TIMEOUT = 60.0


def start(order: Mapping[str, object]) -> int:
    """Starts the supervisor of one launch; gives its PID once it has taken the order and made its record.

    It is not a child of the caller, and neither the caller's end nor a Ctrl-C reaches it. Raises OSError,
    with the reason, when the order was not taken; then nothing runs.
    """
    mark = order.get("mark")
    if not isinstance(mark, Mapping):
        raise OSError("cannot start a supervisor: the order has no mark")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(mark_text(mark)),
        cwd="/",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(json.dumps(order).encode(), timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise OSError(f"the supervisor did not take its order within {TIMEOUT:g} s") from None
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()
    return _pid(output, errors)


def _environment(mark: str) -> dict[str, str | bytes]:
    """Marked from the first instant, and nothing else of the caller's but what its interpreter needs.

    One malloc arena: the probing threads would each leave one behind. The mark is UTF-8 whatever the locale.
    """
    encoded = mark.encode(errors="surrogateescape")
    env: dict[str, str | bytes] = {"SAGE_LAUNCH": encoded, "SAGE_ROLE": "supervisor", "MALLOC_ARENA_MAX": "1"}
    kept = ("LD_LIBRARY_PATH", "TZ")
    return env | {name: os.environ[name] for name in kept if name in os.environ}


def _pid(output: bytes, errors: bytes) -> int:
    try:
        answer = json.loads(output)
    except ValueError:
        lines = errors.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else "it ended without a word"
        raise OSError(f"cannot start a supervisor: {reason}") from None
    if "error" in answer:
        raise OSError(f"cannot start a supervisor: {answer['error']}")
    return int(answer["pid"])
