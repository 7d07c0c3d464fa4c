"""`sage schema`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def schema(
    kind: Annotated[Literal["stack", "routing"], Parameter(help="Which schema.")] = "stack",
    *,
    output: Annotated[
        Path | None,
        Parameter(
            name=["--output", "-o", "--write"], help="A file to write it to, or a folder for all schemas."
        ),
    ] = None,
    check: Annotated[
        bool,
        Parameter(negative="", help="Write nothing; exit 1 where what is in --output is not up to date."),
    ] = False,
) -> int:
    """Print the JSON schema of the stack file, or of the routing table that the gateway reads.

    Example: sage schema > stack.schema.json
    """
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.stack.jsonschema import schema_files

    texts = schema_files()
    wanted = f"{kind}.schema.json"
    if output is None:
        if check:
            raise PermanentError("--check needs --output, the file or folder to compare with")
        print(texts[wanted], end="")
        return 0
    targets = (
        {output / name: text for name, text in texts.items()} if output.is_dir() else {output: texts[wanted]}
    )
    return _stale(targets) if check else _write(targets)


def _stale(targets: dict[Path, str]) -> int:
    """Say which files differ from what they should hold; 1 where any does."""
    stale = [path for path, text in targets.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        print(f"{path}: is not up to date; write it with: sage schema --output {path}")
    return 1 if stale else 0


def _write(targets: dict[Path, str]) -> int:
    from sage_reconcile.errors import PermanentError

    for path, text in targets.items():
        try:
            path.write_text(text, "utf-8")
        except OSError as error:
            raise PermanentError(f"{path}: cannot be written: {error.strerror}") from None
        print(f"{path}: written")
    return 0
