"""Writing of result files: whole or not at all."""

import os
import tempfile
from pathlib import Path

from sage_reconcile.errors import PermanentError


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes through a file beside it and a rename: a reader sees the old text or the new one. A file that is
    there keeps its mode; a device or pipe is written to and never replaced. Raises PermanentError, with the
    reason, when that cannot be done."""
    target = path.resolve()
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        mode = target.stat().st_mode & 0o7777 if target.exists() else mode
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, mode)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise PermanentError(f"{path}: cannot be written: {error.strerror}") from None
