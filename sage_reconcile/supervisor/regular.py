"""Opening what should be a plain file: a pipe or a device put in its place would block whoever opens it."""

import errno
import os
import stat
from pathlib import Path


def open_regular(path: str | Path, flags: int) -> int:
    """A descriptor of the plain file, mode 0600 if `flags` make it. Raises OSError, for anything else too."""
    # Without O_NONBLOCK the opening of a named pipe waits for its other end; plain files do not mind it.
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return handle


def read_regular(path: str | Path) -> bytes:
    """The whole plain file. Raises OSError, for anything else too."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()
