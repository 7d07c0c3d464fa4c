"""Leases of GPUs: one file each in SAGE_HOME, so that they outlive every sage process and two never clash."""

import contextlib
import os
from pathlib import Path

from sage_reconcile import journal
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.observed import Lease
from sage_reconcile.supervisor.regular import read_regular


def read(home: Home) -> tuple[tuple[Lease, ...], str]:
    """All leases, those that have ended too, by GPU; and what could not be read of them, in words, or ""."""
    leases, fault = [], ""
    try:
        paths = sorted(_folder(home).glob("*.json"))
    except OSError as error:
        return (), f"{_folder(home)} cannot be read: {error.strerror}"
    for path in paths:
        try:
            leases.append(codec.decode(read_regular(path), Lease))
        except FileNotFoundError:
            continue  # it has just ended
        except (OSError, ValueError, RecursionError) as error:
            fault = f"{path} is no lease that can be read: {error}"
    return tuple(sorted(leases, key=lambda lease: lease.gpu)), fault


def grant(home: Home, lease: Lease, now: float) -> None:
    """Writes the lease down. Raises PermanentError where the GPU has one that has not ended."""
    end_over(home, now)
    path = _path(home, lease.gpu)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(codec.encode(lease))
        os.link(part, path)  # of two at once, one is first
    except FileExistsError:
        there = next((one for one in read(home)[0] if one.gpu == lease.gpu), None)
        raise PermanentError(f"it is {there or 'leased'} already; `sage lease --end` ends that") from None
    finally:
        part.unlink(missing_ok=True)
    journal.append(home, "lease", lease.gpu, str(lease))


def end(home: Home, lease: Lease) -> None:
    """Ends a lease before its time."""
    _path(home, lease.gpu).unlink(missing_ok=True)
    journal.append(home, "lease ended", lease.gpu, f"was {lease}")


def end_over(home: Home, now: float) -> None:
    """Removes leases whose time is over; they count for nothing already."""
    for lease in read(home)[0]:
        if lease.until <= now:
            with contextlib.suppress(OSError):
                _path(home, lease.gpu).unlink()
                journal.append(home, "lease over", lease.gpu, f"was {lease}")


def _path(home: Home, gpu: str) -> Path:
    return _folder(home) / f"{gpu.replace('/', '_')}.json"


def _folder(home: Home) -> Path:
    return home.root / "leases"
