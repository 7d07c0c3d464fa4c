"""`sage fmt`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def fmt(
    files: Annotated[
        list[Path] | None, Parameter(negative="", help="Files; sage.yaml or stack.yaml when left out.")
    ] = None,
    *,
    check: Annotated[
        bool, Parameter(negative="", help="Write nothing; exit 1 where a file would change.")
    ] = False,
    diff: Annotated[bool, Parameter(negative="", help="Write nothing; show what would change.")] = False,
    modeline: Annotated[
        str, Parameter(help="Path or URL of the JSON schema, to name on the first line for editors.")
    ] = "",
) -> int:
    """Bring stack files into the canonical layout; comments, order and meaning stay.

    Example: sage fmt --check stacks/*.yaml
    """
    from sage_reconcile.cli.files import write_text
    from sage_reconcile.cli.stackfile import stack_paths
    from sage_reconcile.errors import Fault, StackError
    from sage_reconcile.stack.formatting import formatted

    changed = 0
    faults: list[Fault] = []
    for path in files or stack_paths(None, None):
        text = _read(path)
        try:
            wanted = formatted(text, str(path), modeline)
        except StackError as error:
            faults += error.faults
            continue
        if wanted == text:
            continue
        changed += 1
        if diff:
            print(_difference(text, wanted, path), end="")
        elif check:
            print(f"{path}: would be formatted")
        else:
            write_text(path, wanted)
            print(f"{path}: formatted")
    if faults:
        raise StackError(tuple(faults))
    return 1 if changed and check else 0


def _read(path: Path) -> str:
    from sage_reconcile.errors import PermanentError

    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise PermanentError(f"{path}: is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise PermanentError(f"{path}: cannot be read: {error.strerror}") from None


def _difference(before: str, after: str, path: Path) -> str:
    from difflib import unified_diff

    lines = unified_diff(before.splitlines(True), after.splitlines(True), f"{path}", f"{path} (formatted)")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
