"""What environments there are in SAGE_HOME/runtimes, what they hold, and which engines run by them."""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sage_reconcile.home import Home
from sage_reconcile.model.observed import ObservedLaunch
from sage_reconcile.observe.programs import RECORD, is_whole
from sage_reconcile.runtimes.build import Wanted


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment. `version` is "" for one that was made elsewhere, and `target` where its link leads.

    `used_by` are the replicas that run by it, `wanted_by` the runtimes of the stack that pin it. One that is
    wanted and not there has no size.
    """

    folder: str
    runtime: str
    version: str = ""
    target: str = ""
    size: int | None = None
    used_by: tuple[str, ...] = ()
    wanted_by: tuple[str, ...] = ()


def environments(
    home: Home, launches: Iterable[ObservedLaunch], wanted: Iterable[tuple[str, Wanted]]
) -> tuple[Environment, ...]:
    """Those that are there, by name, then those that the stack wants and that are not."""
    users: dict[str, list[str]] = {}
    for launch in launches:
        spec = launch.mark.spec
        folder = spec.program.folder(spec.runtime) if spec.program else spec.runtime
        if spec.python is None:
            users.setdefault(folder, []).append(str(launch.replica))
    named: dict[str, tuple[Wanted, list[str]]] = {}
    for name, one in wanted:
        named.setdefault(one.folder, (one, []))[1].append(name)
    found = [
        _environment(path, tuple(sorted(users.get(path.name, ()))), tuple(named.pop(path.name, (0, ()))[1]))
        for path in _folders(home.runtimes)
    ]
    missing = [
        Environment(folder, one.runtime, one.program.version, wanted_by=tuple(names))
        for folder, (one, names) in named.items()
    ]
    return (*found, *missing)


def _environment(path: Path, used_by: tuple[str, ...], wanted_by: tuple[str, ...]) -> Environment:
    runtime, version = path.name, ""
    if is_whole(path):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((path / RECORD).read_bytes())
            runtime, version = str(record["runtime"]), str(record["program"]["version"])
    target = str(path.resolve()) if path.is_symlink() else ""
    return Environment(path.name, runtime, version, target, _size(path), used_by, wanted_by)


def _folders(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return []


def _size(path: Path) -> int:
    """Bytes on the disk, what is shared with uv's cache included; of a link, what it leads to."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, files in os.walk(path.resolve()):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(folder, name))
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
    return total
