"""The options that say which stack is meant, and loading it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sage_reconcile.errors import PermanentError
from sage_reconcile.stack.file import StackFile

DEFAULTS = ("sage.yaml", "stack.yaml")

File = Annotated[Path | None, Parameter(help="The stack file; sage.yaml or stack.yaml when left out.")]
Overlays = Annotated[
    list[Path] | None,
    Parameter(name=["--file", "-f"], negative="", help="Another stack file, merged over the ones before."),
]
Sets = Annotated[
    list[str] | None,
    Parameter(name="--set", negative="", help="Override one value: engines.chat.args.max-model-len=4096."),
]
Targets = Annotated[
    list[str] | None, Parameter(name="--target", negative="", help="Only this engine; may be repeated.")
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]


def stack_paths(file: Path | None, overlays: Sequence[Path] | None) -> list[Path]:
    """The files that make up the stack, in order. Raises PermanentError when none is named or found."""
    paths = [*([file] if file else []), *(overlays or [])]
    if paths:
        return paths
    for name in DEFAULTS:
        if Path(name).exists():
            return [Path(name)]
    raise PermanentError(f"no stack file: there is no {' or '.join(DEFAULTS)} in {Path.cwd()}; name one")


def load_stack(
    file: Path | None, overlays: Sequence[Path] | None, sets: Sequence[str] | None, portable: bool = False
) -> StackFile:
    """The validated stack. Raises StackError with every fault."""
    from sage_reconcile.stack.load import load

    return load(stack_paths(file, overlays), os.environ, tuple(sets or ()), portable)


def known_targets(targets: Sequence[str] | None, engines: Sequence[str]) -> frozenset[str] | None:
    """The engines of --target. Raises PermanentError for one that does not exist."""
    if not targets:
        return None
    for target in targets:
        if target not in engines:
            from difflib import get_close_matches

            near = get_close_matches(target, engines, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(engines)}"
            raise PermanentError(f"no engine named {target}; {hint}")
    return frozenset(targets)
