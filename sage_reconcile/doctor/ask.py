"""Asking another Python, with a deadline that holds whatever it does."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSIDE = Path(__file__).with_name("inside.py")
OUTPUT_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """The lines of JSON that it wrote. `fault` says why there are not more: "" where it came to its end."""

    lines: tuple[Any, ...]
    fault: str = ""
    is_late: bool = False


async def ask(python: str, words: Sequence[str], environ: Mapping[str, str], seconds: float) -> Answer:
    """What `inside.py WORDS` says in this Python; never raises. One that is late is ended."""
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            str(INSIDE),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environ),
            cwd="/",
            start_new_session=True,
            limit=OUTPUT_LIMIT,
        )
    except OSError as error:
        return Answer((), f"it does not start: {error.strerror or error}")
    assert process.stdout is not None
    assert process.stderr is not None
    out, errors = _Collected(process.stdout), _Collected(process.stderr)
    is_late = False
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(out.read(), errors.read(), process.wait())
    except TimeoutError:
        is_late = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    lines = tuple(_parsed(out.data))
    if is_late:
        return Answer(lines, f"no answer within {seconds:g} s", is_late=True)
    return Answer(lines, _how_it_ended(process.returncode or 0, errors.data) if process.returncode else "")


class _Collected:
    """What came out of a pipe so far: kept when the rest is not waited for."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self.stream = stream
        self.data = b""

    async def read(self) -> None:
        while piece := await self.stream.read(65536):
            self.data = (self.data + piece)[-OUTPUT_LIMIT:]


def _parsed(data: bytes) -> list[Any]:
    found = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _how_it_ended(code: int, errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    return f"{how}: {lines[-1].strip()[:200]}" if lines else how
