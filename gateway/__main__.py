"""`python -m gateway`: one gateway in the foreground, with as many workers as asked."""

import copy
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway import settings
from gateway.auth import check_listen
from gateway.keys import load_keys
from sage_reconcile.errors import ReconcileError

# Shorter than the grace that `sage gateway stop` gives before it kills.
DRAIN_S = 25
# Longer than clients keep idle connections, so that none is closed under a request.
CLIENT_KEEP_ALIVE_S = 75


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to end. 1 if it may not listen as asked."""
    options = settings.parse(arguments)
    try:
        environ = settings.to_environ(options, os.environ)
        check_listen(options.host, load_keys(os.environ, options.api_key_file, options.workers))
    except ReconcileError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if not settings.is_marked(os.environ, Path(environ[settings.MARK])):
        # A process is found by the environment that it was started with: start again, with the mark in it.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **environ})
    os.environ.update(environ)
    Path(environ[settings.MARK]).mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not before: it takes longer than everything above.
    import uvicorn

    from gateway.protocol import GatewayProtocol

    uvicorn.run(
        "gateway.app:create_app",
        factory=True,
        host=options.host,
        port=options.port,
        workers=options.workers,
        loop="uvloop",
        http=GatewayProtocol,
        ws="none",
        log_level=options.log_level,
        log_config=_log_config(options.log_level),
        access_log=options.log_level in ("debug", "trace"),
        # An engine's reply keeps its own date and server headers.
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=CLIENT_KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    return 0


def _log_config(level: str) -> dict[str, Any]:
    from uvicorn.config import LOGGING_CONFIG

    config = copy.deepcopy(LOGGING_CONFIG)
    for formatter in config["formatters"].values():
        formatter["fmt"] = f"%(asctime)s [%(process)d] {formatter['fmt']}"
    config["loggers"]["gateway"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    return config


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
