"""`python -m sage_reconcile.management LISTENER CHANNEL`: started by a gateway when somebody manages.

LISTENER is the number of an inherited unix socket, CHANNEL of one whose other end the gateway holds: when
that is gone, this process ends.
"""

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Sequence

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sage_reconcile.converge import local_host
from sage_reconcile.errors import ReconcileError
from sage_reconcile.home import Home
from sage_reconcile.management.app import Presence, build

READY = b"R"
IDLE = "SAGE_CONTROL_IDLE_SECONDS"
IDLE_S = 300.0
# How long streams may go on when it is told to end; operations have their own rules.
DRAIN_S = 2
_CREDENTIALS = struct.Struct("3i")


class OwnUserOnly(HttpToolsProtocol):
    """Anybody of this machine may connect to an abstract name: only this user gets further."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        said = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(said)[1] != os.getuid():
            transport.abort()


class ControlServer(uvicorn.Server):
    """Ends with the gateway, and when nobody has needed it for `idle` seconds."""

    def __init__(
        self, config: uvicorn.Config, channel: socket.socket, presence: Presence, idle: float
    ) -> None:
        super().__init__(config)
        self._channel = channel
        self._presence = presence
        self._idle = idle

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        asyncio.get_running_loop().add_reader(self._channel, self._gateway_is_gone)
        with contextlib.suppress(OSError):  # the gateway is gone, which is noticed where it is read from
            self._channel.send(READY)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._presence.idle_seconds() > self._idle

    def _gateway_is_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        self.should_exit = True


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to end, is not needed, or the gateway is gone."""
    listener, channel = (socket.socket(fileno=int(number)) for number in arguments)
    for inherited in (listener, channel):
        inherited.set_inheritable(False)
        inherited.setblocking(False)
    try:
        app, presence = build(local_host(Home.from_environ().claim()))
    except ReconcileError as error:
        sys.stderr.write(f"error: the control process cannot start: {error}\n")
        return 1
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=OwnUserOnly,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    idle = float(os.environ.get(IDLE) or IDLE_S)
    try:
        ControlServer(config, channel, presence, idle).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # the server ended because of it, and raises the signal again
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
