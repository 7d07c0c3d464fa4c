"""`python -m gateway`: one gateway in the foreground, with as many workers as asked."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway import settings
from sage_reconcile.errors import ReconcileError


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to end. 1 if it may not, or cannot, listen as asked."""
    options = settings.parse(arguments)
    try:
        environ = settings.to_environ(options, os.environ)
        if not settings.is_marked(os.environ, Path(environ[settings.MARK])):
            # A process is found by the environment that it was started with: once more, with the mark.
            os.execve(sys.executable, sys.orig_argv, {**os.environ, **environ})
        os.environ.update(environ)
        if not _may_listen(options.host, options.api_key_file):
            return 1
        Path(environ[settings.MARK]).mkdir(mode=0o700, parents=True, exist_ok=True)
        from gateway import master

        return master.serve(options)
    except (ReconcileError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _may_listen(host: str, key_file: str) -> bool:
    """Whether there are the keys that it takes to listen there; says what is missing.

    Looked at in a process of its own: what that takes of memory would stay in this one, which lives long.
    """
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    from gateway.auth import check_listen
    from gateway.keys import load_keys

    # Whatever is raised ends the child with status 1, told as it would be by this process.
    check_listen(host, load_keys(os.environ, key_file))
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
