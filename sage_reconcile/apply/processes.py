"""Ends processes, and only those that prove at that moment to be of the launch. Linux; standard library."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def _environment(pid: int) -> dict[bytes, bytes]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(entry.split(b"=", 1) for entry in raw.split(b"\0") if b"=" in entry)


def _is_alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _launch(environment: dict[bytes, bytes]) -> str | None:
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        found = json.loads(environment.get(b"SAGE_LAUNCH", b"null"))
        return str(found["launch"]) if found else None
    return None


def is_supervisor(pid: int, launch: str) -> bool:
    """Whether this process, now, is the live supervisor of the launch: its own environment says so."""
    environment = _environment(pid)
    return (
        environment.get(b"SAGE_ROLE") == b"supervisor" and _launch(environment) == launch and _is_alive(pid)
    )


def _all_pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def members(launch: str, session: int | None = None) -> list[int]:
    """Live processes of the launch: those with its mark, and those of the session its supervisor led.

    The session counts only while it has a marked member: session ids are used again.
    """
    marked, in_session = [], []
    for pid in _all_pids():
        if not _is_alive(pid):
            continue
        if _launch(_environment(pid)) == launch:
            marked.append(pid)
        elif session is not None:
            with contextlib.suppress(OSError):
                if os.getsid(pid) == session:
                    in_session.append(pid)
    return sorted(marked + (in_session if marked else []))


def send(pid: int, launch: str, number: signal.Signals) -> bool:
    """Signals the process if it still is of the launch; a pidfd keeps a reused id from being hit."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if _launch(_environment(pid)) != launch:
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def kill_session_member(pid: int, session: int) -> bool:
    """SIGKILL for a process of the supervisor's session that has lost its mark."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if os.getsid(pid) != session:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
