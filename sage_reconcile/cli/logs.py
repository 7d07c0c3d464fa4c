"""`sage logs`."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.observe.look import LocalEyes

TICK = 0.2


def logs(
    engine: Annotated[str, Parameter(help="chat, chat#1 or stack/chat#1.")],
    /,
    *,
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative="", help="Go on until Ctrl-C.")
    ] = False,
    lines: Annotated[int, Parameter(name=["--lines", "-n"], help="How many lines to begin with.")] = 50,
    previous: Annotated[bool, Parameter(negative="", help="Of the process before this one.")] = False,
) -> int:
    """Show what an engine prints; also of one that has ended.

    Example: sage logs chat --follow
    """
    folder = _folder(engine)
    path = _log(folder, previous)
    if path is None:
        which = "an earlier process of it" if previous else "it"
        raise PermanentError(f"no log of {engine}: nothing of {which} is left in {folder}")
    for line in _last(path, lines):
        sys.stdout.write(line)
    sys.stdout.flush()
    if follow:
        _follow(folder, path)
    return 0


def _folder(name: str) -> Path:
    """The records of the replica that is meant: one that runs, else one that has run."""
    home = Home.from_environ()
    of_stack, _, rest = name.rpartition("/")
    engine, _, number = rest.partition("#")
    running = asyncio.run(LocalEyes(home).look()).launches
    found = {
        home.replica_dir(one.replica.stack, one.replica.engine, one.replica.replica)
        for one in running
        if one.replica.engine == engine and of_stack in ("", one.replica.stack)
    }
    found = found or {path for path in home.run.glob(f"{of_stack or '*'}/{engine}.*") if path.is_dir()}
    if number:
        found = {path for path in found if path.name == f"{engine}.{number}"}
    if not found:
        known = sorted(f"{path.parent.name}/{path.name.replace('.', '#')}" for path in home.run.glob("*/*.*"))
        raise PermanentError(f"no engine named {name} has run here; known: {', '.join(known) or 'none'}")
    stacks = {path.parent.name for path in found}
    if len(stacks) > 1:
        raise PermanentError(
            f"{name} is in several stacks: {', '.join(sorted(stacks))}; name one: STACK/{name}"
        )
    return min(found, key=lambda path: path.name)


def _log(folder: Path, previous: bool) -> Path | None:
    """The newest log, or with `previous` the one before: of the attempt before, else of the launch before."""
    launches = sorted((p for p in folder.glob("*/engine.log")), key=lambda p: p.stat().st_mtime, reverse=True)
    if not previous:
        return launches[0] if launches else None
    earlier = [launches[0].with_name("previous.log")] if launches else []
    return next((path for path in [*earlier, *launches[1:]] if path.exists()), None)


def _last(path: Path, lines: int) -> Iterator[str]:
    with path.open("rb") as file:
        file.seek(0, 2)
        size = file.tell()
        file.seek(max(0, size - lines * 400 - 4096))
        text = file.read().decode("utf-8", "replace").splitlines(keepends=True)
    yield from text[-lines:] if lines > 0 else []


def _follow(folder: Path, path: Path) -> None:
    """Prints what is added, over rotations, restarts and new launches, until interrupted."""
    file = path.open("rb")
    file.seek(0, 2)
    while True:
        data = file.read()
        if data:
            sys.stdout.write(data.decode("utf-8", "replace"))
            sys.stdout.flush()
            continue
        newest = _log(folder, previous=False)
        if newest is not None and not _is_same(newest, file.fileno()):
            file.close()
            file = newest.open("rb")
            continue
        time.sleep(TICK)


def _is_same(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return True
