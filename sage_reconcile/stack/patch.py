"""Fixes as changed texts of stack files: which file, which line, and the difference to show."""

import difflib
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, cast

from sage_reconcile.errors import PermanentError
from sage_reconcile.model.fixes import Edit, Fix
from sage_reconcile.stack.edit import CannotEdit, renamed, written
from sage_reconcile.stack.fields import normal_arg
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.layers import layer_of
from sage_reconcile.stack.merge import Merged, apply_sets
from sage_reconcile.stack.problems import Path, dotted
from sage_reconcile.stack.references import Context
from sage_reconcile.stack.validate import Validator
from sage_reconcile.stack.yamltree import parse

_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Change:
    """One value as it changes: `path` below the engine as users write it, values as YAML would show them."""

    file: str
    line: int
    engine: str
    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        before = "(none)" if self.before is None else _shown(self.before)
        return f"{self.path}: {before} -> {_shown(self.after)}"


@dataclass(frozen=True, slots=True)
class Patch:
    """One file before and after, byte for byte, and what changes in it."""

    path: str
    before: str
    after: str
    changes: tuple[Change, ...]

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(
            self.before.splitlines(True), self.after.splitlines(True), self.path, f"{self.path} (fixed)"
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


class Patcher:
    """Collects the edits of several fixes; each is taken as a whole or not at all.

    `environ` and `sets` are those that the stack was loaded with.
    """

    def __init__(self, stack: StackFile, environ: Mapping[str, str], sets: Sequence[str] = ()) -> None:
        self._stack = stack
        self._environ = environ
        self._sets = sets
        self._before: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._changes: list[Change] = []

    def add(self, fix: Fix) -> tuple[Change, ...]:
        """Takes the fix's edits in. Raises PermanentError with the reason why a person has to make them."""
        if not self._stack.sources:
            raise PermanentError("a stored plan cannot be edited: edit its stack file and plan again")
        texts, changes = dict(self._texts), []
        for edit in fix.edits:
            change, text = self._edited(fix.engine, edit, texts)
            texts[change.file] = text
            changes.append(change)
        self._must_stay_good(texts)
        self._texts = texts
        self._changes += changes
        return tuple(changes)

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The files that change, in the order in which they are read."""
        return tuple(
            Patch(path, self._before[path], text, tuple(c for c in self._changes if c.file == path))
            for path, _ in self._stack.sources
            if (text := self._texts.get(path)) is not None and text != self._before[path]
        )

    def _edited(self, engine: str, edit: Edit, texts: dict[str, str]) -> tuple[Change, str]:
        path = self._spelled(engine, edit.path)
        file, entry, text = self._holder(engine, path, texts)
        bom, body = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
        value = cast(Any, edit.value)
        before = _value(entry, path)
        if any(isinstance(part, int) for part in path) and before is None:
            # The list comes from elsewhere, and lists replace one another: the engine gets one of its own.
            words = list(getattr(self._engine(engine), str(path[0])))
            before, words[int(path[1])] = words[int(path[1])], str(value)
            path, value = path[:1], words
        whole = ("engines", entry.index, *path)
        self._must_not_be_set(engine, path)
        if edit.rename:
            after = renamed(body, whole, edit.rename)
            value, path = edit.rename, path
        else:
            after = written(body, whole, value)
        if after == body:
            raise CannotEdit(f"{dotted(path)} is {_shown(value)} already")
        shown = before if before is not None else self._inherited(engine, path)
        shown = str(path[-1]) if edit.rename else shown
        return Change(file, _changed_line(body, after), engine, dotted(path), shown, value), bom + after

    def _spelled(self, engine: str, path: Path) -> Path:
        """The path as the files spell it: `max_model_len` and `max-model-len` for one engine are a fault."""
        if path[0] != "args":
            return path
        entries = [entry for entry in self._stack.document["engines"] if entry["name"] == engine]
        for holder in (*entries, self._stack.document.get("defaults") or {}):
            for key in holder.get("args") or {}:
                if normal_arg(key) == path[1]:
                    return ("args", key)
        return path

    def _engine(self, name: str) -> Any:
        return next(engine for engine in self._stack.model.engines if engine.name == name)

    def _inherited(self, name: str, path: Path) -> Any:
        """What the engine has from defaults or from its runtime's flags, None where nothing is written."""
        engine: Any = self._engine(name)
        value = engine.model_dump(exclude_unset=True)
        for part in (path[0], normal_arg(str(path[1]))) if path[0] == "args" else path:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def _must_not_be_set(self, engine: str, path: Path) -> None:
        key = f"engines.{engine}.{dotted(path)}"
        for given in self._sets:
            name = given.partition("=")[0].strip().replace("_", "-")
            if key.replace("_", "-").startswith(name) or name.startswith(key.replace("_", "-")):
                raise CannotEdit(f"--set {given} wins over the file: change it there")

    def _holder(self, engine: str, path: Path, texts: dict[str, str]) -> tuple[str, "_Entry", str]:
        """The file to edit: the last that gives the engine this value, else the last that has the engine."""
        last: tuple[str, _Entry, str] | None = None
        for file, digest in reversed(self._stack.sources):
            text = texts.get(file)
            if text is None:
                text = self._read(file, digest)
            entry = _entry(text.removeprefix(_BOM), engine)
            if entry is None:
                continue
            last = last or (file, entry, text)
            if _value(entry, path) is not None:
                last = (file, entry, text)
                break
        if last is None:
            raise CannotEdit(f"no file has an entry for {engine}")
        _must_be_writable(last[0])
        self._before.setdefault(last[0], self._texts.get(last[0], last[2]))
        return last

    def _read(self, file: str, digest: str) -> str:
        try:
            if not stat.S_ISREG(os.stat(file).st_mode):
                raise CannotEdit(f"{file} is no regular file: the edit belongs where it is made")
            data = FilePath(file).read_bytes()
        except OSError as error:
            raise CannotEdit(f"{file}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise CannotEdit(f"{file} was changed since it was applied: apply again")
        return data.decode("utf-8")

    def _must_stay_good(self, texts: dict[str, str]) -> None:
        """A stack that is good stays good. Raises CannotEdit with the first fault there would be."""
        layers = []
        for file, digest in self._stack.sources:
            text = texts.get(file) or self._read(file, digest)
            root, _ = parse(text.removeprefix(_BOM))
            if root is not None:
                layers.append(layer_of(file, text.encode(), root))
        merged = Merged(layers)
        apply_sets(merged, self._sets)
        validator = Validator(
            merged.document, self._stack.base, Context(self._environ, os.path.exists, is_portable=False)
        )
        if validator.run() is None:
            files = [layer.path for layer in layers]
            fault = merged.locate(validator.problems[0], files)[1]
            raise CannotEdit(f"with it the file would have a fault: {fault.field}: {fault.message}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """The engine's entry in one file, as a plain value."""

    index: int
    plain: dict[str, Any]


def _entry(text: str, engine: str) -> _Entry | None:
    root, _ = parse(text)
    plain = root.plain() if root is not None else None
    listed = plain.get("engines") if isinstance(plain, dict) else None
    for index, item in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(item, dict) and item.get("name") == engine:
            return _Entry(index, item)
    return None


def _value(entry: _Entry, path: Path) -> Any:
    value: Any = entry.plain
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


def _must_be_writable(file: str) -> None:
    if not os.access(FilePath(file).resolve().parent, os.W_OK):
        raise CannotEdit(f"{file} lies where this user may not write: the edit is yours to make")


def _changed_line(before: str, after: str) -> int:
    """The first line of `after` that is not so in `before`, from 1."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    return (same if same is not None else len(before.splitlines())) + 1


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
