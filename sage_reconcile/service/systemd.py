"""Talking to systemd by systemctl, with deadlines."""

import asyncio
import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sage_reconcile.errors import BlockedError
from sage_reconcile.service.unit import Scope

SECONDS = 120.0
SYSTEM_UNITS = Path("/etc/systemd/system")
# What `systemctl is-system-running` says where systemd does not run, or not for this user.
ABSENT = frozenset({"", "offline", "unknown"})


@dataclass(frozen=True, slots=True)
class Done:
    """How a systemctl ended."""

    code: int
    out: str
    err: str


def unit_folder(scope: Scope) -> Path:
    """Where units of this scope lie."""
    if scope == "system":
        return SYSTEM_UNITS
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "systemd" / "user"


def is_there(scope: Scope) -> bool:
    """Whether a systemd runs that takes units of this scope."""
    return shutil.which("systemctl") is not None and ask(scope, "is-system-running").out not in ABSENT


def ask(scope: Scope, *words: str) -> Done:
    """systemctl with these words; what it says, whatever its exit status."""
    return asyncio.run(_run(scope, words))


def order(scope: Scope, *words: str) -> None:
    """As `ask`. Raises BlockedError, in systemd's own words, where it fails."""
    done = ask(scope, *words)
    if done.code:
        said = done.err or done.out or f"exit status {done.code}"
        raise BlockedError(f"systemctl {' '.join(words)} failed: {said}")


async def _run(scope: Scope, words: tuple[str, ...]) -> Done:
    arguments = ["--user"] if scope == "user" else []
    try:
        process = await asyncio.create_subprocess_exec(
            "systemctl",
            *arguments,
            "--no-pager",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise BlockedError(f"systemctl cannot be started: {error.strerror}") from None
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise BlockedError(f"systemctl {' '.join(words)} gave no answer within {SECONDS:g} s") from None
    return Done(
        process.returncode or 0, out.decode(errors="replace").strip(), err.decode(errors="replace").strip()
    )


def lingers(user: str) -> bool:
    """Whether this user's units are started at boot, and outlive a logout."""
    return Path("/var/lib/systemd/linger", user).exists()
