"""`sage logs`."""

import asyncio
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sage_reconcile.cli.tail import Follow, Lines
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.desired import ReplicaId
from sage_reconcile.observe.look import LocalEyes
from sage_reconcile.render import clean
from sage_reconcile.stack.problems import did_you_mean

TICK = 0.2


def logs(
    engine: Annotated[str, Parameter(help="chat, chat#1 or stack/chat#1.")],
    /,
    *,
    follow: Follow = False,
    lines: Lines = 50,
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
        _show(line)
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
    known = _recorded(home)
    found = found or {
        path for one, path in known.items() if one.engine == engine and of_stack in ("", one.stack)
    }
    if number:
        found = {path for path in found if path.name == f"{engine}.{number}"}
    if not found:
        raise PermanentError(f"no engine named {name} has run here; {_hint(name, known)}")
    stacks = {path.parent.name for path in found}
    if len(stacks) > 1:
        raise PermanentError(
            f"{name} is in several stacks: {', '.join(sorted(stacks))}; name one: STACK/{name}"
        )
    return min(found, key=lambda path: path.name)


def _recorded(home: Home) -> dict[ReplicaId, Path]:
    """The replicas that have records here; other things lie beside them, the gateway's for one."""
    found = {}
    for path in sorted(home.run.glob("*/*.*")):
        engine, _, number = path.name.rpartition(".")
        if number.isdecimal() and path.is_dir():
            found[ReplicaId(path.parent.name, engine, int(number))] = path
    return found


def _hint(name: str, known: Iterable[ReplicaId]) -> str:
    if name == "gateway":
        return "the gateway's log: `sage gateway logs`"
    # Nearest to the form that was typed: chta is like chat, demo/chta#0 like demo/chat#0.
    forms = [form for one in known for form in (one.engine, one.short, f"{one.stack}/{one.engine}", str(one))]
    listed = ", ".join(str(one) for one in sorted(known)) or "none"
    return did_you_mean(name, forms) or f"known: {listed}"


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
            _show(data.decode("utf-8", "replace"))
            continue
        newest = _log(folder, previous=False)
        if newest is not None and not _is_same(newest, file.fileno()):
            file.close()
            file = newest.open("rb")
            continue
        time.sleep(TICK)


def _show(text: str) -> None:
    """A terminal gets no control characters: what an engine prints may be what a stranger asked it."""
    sys.stdout.write(clean.lines(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _is_same(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return True
