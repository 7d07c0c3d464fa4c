"""An engine that writes bytes as they are given, right or wrong."""

import contextlib
import socket
import threading
from collections.abc import Sequence
from typing import Self

from tests.gateway.world import DEADLINE_S


class RawEngine:
    """Reads whole requests with a content-length and answers each with `pieces`, one write for each.

    `closes`: it ends the connection after a reply. `requests` holds head and body of each, in order.
    """

    def __init__(self, *pieces: bytes, closes: bool = False) -> None:
        self.pieces: Sequence[bytes] = pieces
        self.closes = closes
        self.requests: list[bytes] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(DEADLINE_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                self._open.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            while head := _head(lines):
                length = next(int(line[15:]) for line in head if line.lower().startswith(b"content-length:"))
                self.requests.append(b"".join(head) + lines.read(length))
                for piece in self.pieces:
                    connection.sendall(piece)
                if self.closes:
                    return


def _head(lines: object) -> list[bytes]:
    head: list[bytes] = []
    for line in lines:  # type: ignore[attr-defined]
        head.append(line)
        if line == b"\r\n":
            return head
    return []
