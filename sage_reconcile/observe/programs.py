"""Which versions of engine programs sage has installed here. Pure file reading."""

import contextlib
from pathlib import Path

from sage_reconcile.home import Home

RECORD = "sage-runtime.json"
"""In the folder of an environment that sage has built, and written last: without it none is whole."""


def installed(home: Home) -> tuple[str, ...]:
    """The folders in SAGE_HOME/runtimes that hold whole environments of sage's making, sorted."""
    with contextlib.suppress(OSError):
        return tuple(sorted(path.name for path in home.runtimes.iterdir() if is_whole(path)))
    return ()


def is_whole(path: Path) -> bool:
    return not path.name.startswith(".") and (path / RECORD).is_file() and (path / "bin" / "python").exists()
