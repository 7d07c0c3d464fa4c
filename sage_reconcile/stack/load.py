"""Stack files to a StackFile, or to one StackError with every fault of every file."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_reconcile.errors import Fault, StackError
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.layers import Reader
from sage_reconcile.stack.merge import Merged, apply_sets
from sage_reconcile.stack.problems import dotted
from sage_reconcile.stack.references import Context
from sage_reconcile.stack.validate import Validator


def load(
    paths: Sequence[Path],
    environ: Mapping[str, str],
    sets: Sequence[str] = (),
    portable: bool = False,
    texts: Mapping[str, str] | None = None,
) -> StackFile:
    """Read stack files, each later one laid over those before it, then `sets` (`engines.chat.replicas=2`).

    `portable` leaves out what depends on this host: model directories, environment variables, secret files.
    `texts` are contents by path that are read instead of the files: an edit that is not written yet.
    Raises StackError with every fault of all files, in file order.
    """
    reader = Reader(portable, texts)
    for path in paths:
        reader.read(str(path))
    merged = Merged(reader.layers)
    faults = [*reader.faults, *merged.faults, *apply_sets(merged, sets)]
    base = Path(paths[0]).absolute().parent
    validator = Validator(merged.document, base, Context(environ, os.path.exists, portable))
    model = validator.run() if reader.layers else None
    is_whole = not reader.faults
    placed = [
        merged.locate(problem, reader.files)
        for problem in validator.problems
        if is_whole or not problem.is_partial
    ]
    if faults or placed or model is None:
        raise StackError(_in_file_order(faults, placed, reader.files))
    return StackFile(
        name=model.name or _name_of(Path(paths[0])),
        document=merged.document,
        base=base,
        sources=tuple((layer.path, layer.sha256) for layer in reader.layers),
        model=model,
    )


def from_document(
    document: Mapping[str, Any],
    base: Path,
    name: str,
    environ: Mapping[str, str] | None = None,
) -> StackFile:
    """The StackFile of a stored `document`, as history and plan files keep it.

    References are read from `environ`, by default the environment of this process. Raises StackError, whose
    faults name `name` and no line.
    """
    context = Context(os.environ if environ is None else environ, os.path.exists, is_portable=False)
    validator = Validator(document, base, context)
    model = validator.run()
    if model is None:
        faults = [Fault(name, 0, 0, dotted(p.path), p.message, p.hint) for p in validator.problems]
        raise StackError(tuple(faults))
    return StackFile(model.name or name, dict(document), base, (), model)


def _in_file_order(
    faults: Sequence[Fault], placed: Iterable[tuple[tuple[int, int, int], Fault]], files: Sequence[str]
) -> tuple[Fault, ...]:
    order = {path: number for number, path in reversed(list(enumerate(files)))}
    keyed = [((order.get(fault.path, len(files)), fault.line, fault.column), fault) for fault in faults]
    keyed += placed
    return tuple(dict.fromkeys(fault for _, fault in sorted(keyed, key=lambda item: item[0])))


def _name_of(path: Path) -> str:
    """The file's stem as a stack name: lower case, other characters become hyphens."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).lstrip("._-")[:63]
    return name or "stack"
