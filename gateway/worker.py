"""`python -m gateway.worker`: one process that serves, on sockets that its parent listens on."""

import argparse
import asyncio
import contextlib
import copy
import gc
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from gateway import lean, settings
from gateway.listening import BACKLOG, inherited
from gateway.protocol import GatewayProtocol
from gateway.workers import LEAVING, READY
from sage_reconcile.errors import ReconcileError

# How long requests in flight may go on at most when it is told to end, seconds. Its parent, if it lives, says
# when it is enough.
DRAIN_S = 600
# Longer than clients keep idle connections, so that none is closed under a request.
CLIENT_KEEP_ALIVE_S = 75
# New containers between two looks for garbage, and looks between two at what survived them. Requests leave
# next to none in cycles, so that looking as often as Python does by itself costs more than it finds.
GC_THRESHOLDS = (50_000, 20, 20)


class WorkerServer(uvicorn.Server):
    """A server whose life hangs on its parent: it tells when it serves, and ends when the parent is gone."""

    def __init__(self, config: uvicorn.Config, channel: socket.socket) -> None:
        super().__init__(config)
        self._channel = channel

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept, and tells."""
        # The application is built and stays: it is no garbage, nor worth another look.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await super().startup(sockets=sockets)
        if self.started:
            asyncio.get_running_loop().add_reader(self._channel, self._parent_is_gone)
            self._tell(READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections, then lets those that are there end."""
        for server in self.servers:
            server.close()
        self._tell(LEAVING)
        # What was accepted last gets its protocol in the next turn of the loop, and must not be overlooked
        # when all are told.
        for _ in range(3):
            await asyncio.sleep(0)
        await super().shutdown(sockets=sockets)

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, which is noticed where it is read from
            self._channel.send(word)

    def _parent_is_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        self.should_exit = True


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to end, or its parent is gone. 1 if the application cannot be built."""
    options = _parse(arguments)
    lean.import_litestar()
    config = uvicorn.Config(
        "gateway.app:create_app",
        factory=True,
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
        backlog=BACKLOG,
        timeout_keep_alive=CLIENT_KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = WorkerServer(config, inherited(options.channel))
    try:
        server.run(sockets=[inherited(number) for number in options.listen])
    except ReconcileError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        pass  # the server ended because of it, and raises the signal again
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m gateway.worker", description="Started by python -m gateway.")
    p.add_argument("--log-level", choices=settings.LOG_LEVELS, default="info")
    p.add_argument("--listen", type=int, action="append", default=[], help="number of a listening socket")
    p.add_argument("channel", type=int, help="number of the socket that leads to the parent")
    return p.parse_args(arguments)


def _log_config(level: str) -> dict[str, Any]:
    config = copy.deepcopy(LOGGING_CONFIG)
    for formatter in config["formatters"].values():
        formatter["fmt"] = f"%(asctime)s [%(process)d] {formatter['fmt']}"
    config["loggers"]["gateway"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    return config


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
