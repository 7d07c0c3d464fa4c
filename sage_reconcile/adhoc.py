"""The stack file of imperative commands, $SAGE_HOME/stacks/adhoc.yaml: edited by them, valid after each edit.

It is a stack file like any other: it may be edited by hand, applied, watched, and put into git.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_reconcile.errors import (
    BlockedError,
    Fault,
    PermanentError,
    ReconcileError,
    StackError,
    TransientError,
)
from sage_reconcile.home import Home
from sage_reconcile.stack.editing import engines_of
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.load import load
from sage_reconcile.stack.yamltree import parse
from sage_reconcile.supervisor.records import write_atomic

STACK = "adhoc"
HEAD = """\
# Written by `sage llm` and `sage embedding`: what was started by hand. It may be edited; comments stay.
#   sage plan FILE, sage apply FILE and sage watch FILE take it like any other stack file.
version: 1
name: adhoc

engines: []
"""

Edit = Callable[[str, str], str]
"""From the text and the path that faults name to the new text."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An edit that is valid and not written yet. `before` is the text it was made from, "" for no file."""

    path: Path
    before: str
    text: str
    stack: StackFile


def text_of(home: Home) -> str:
    """What the file says, "" where there is none. Raises PermanentError where it cannot be read."""
    path = home.adhoc_file
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise PermanentError(f"{path}: is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise PermanentError(f"{path}: cannot be read: {error.strerror}") from None


def entries(home: Home) -> dict[str, dict[str, Any]]:
    """The engines of the file by name, as it writes them. Raises StackError where it is no YAML."""
    text = text_of(home)
    _, faults = parse(text)
    if faults:
        path = str(home.adhoc_file)
        raise StackError(tuple(Fault(path, f.line, f.column, "", f.message, f.hint) for f in faults))
    return {str(one.get("name")): one for one in engines_of(text)}


def entries_or_fault(home: Home) -> tuple[dict[str, dict[str, Any]], str]:
    """The same for whoever only looks or stops; where it cannot be read none, and why."""
    try:
        return entries(home), ""
    except ReconcileError as error:
        return {}, str(error)


def draft(home: Home, edit: Edit, environ: Mapping[str, str] = os.environ) -> Draft:
    """The file after `edit`.

    Raises StackError where the file itself is at fault, PermanentError where it would be after the edit:
    places in a text that nobody sees would help nobody.
    """
    path, before = home.adhoc_file, text_of(home)
    if before:
        load([path], environ, texts={str(path): before})
    text = edit(before or HEAD, str(path))
    try:
        stack = load([path], environ, texts={str(path): text})
    except StackError as error:
        told = [f"{f.field}: {f.message}{f' ({f.hint})' if f.hint else ''}" for f in error.faults]
        raise PermanentError(f"nothing was done, {'; '.join(told)}") from None
    if stack.name != STACK:
        raise PermanentError(f"{path} is named {stack.name}: name it {STACK}, or copy it elsewhere")
    return Draft(path, before, text, stack)


def write(made: Draft) -> None:
    """Puts the draft in the file's place, in one step.

    Raises TransientError where somebody else has edited the file since the draft was made.
    """
    with _locked(made.path):
        _require(made.path, made.before)
        _put(made.path, made.text)


def restore(made: Draft) -> bool:
    """Takes a written draft back; False where somebody else has edited the file since: that stays."""
    with _locked(made.path):
        try:
            _require(made.path, made.text)
        except TransientError:
            return False
        if made.before:
            _put(made.path, made.before)
        else:
            made.path.unlink(missing_ok=True)
    return True


def _require(path: Path, text: str) -> None:
    now = path.read_bytes() if path.exists() else b""
    if now != text.encode():
        raise TransientError(f"{path} was edited by somebody else meanwhile: nothing was done; try again")


def _put(path: Path, text: str) -> None:
    write_atomic(path, text.encode())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held for the instant of a comparison and a write; it ends with its holder."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BlockedError(f"cannot use {path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
