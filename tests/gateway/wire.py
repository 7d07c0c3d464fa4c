"""Both ends of HTTP as plain bytes: an engine that answers whatever a test says, a client that sends it."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Self

from tests.gateway.world import DEADLINE_S


@dataclass(frozen=True)
class Message:
    """A request or a reply: its first line, its headers by lower-case names, and the body without chunks."""

    start: bytes
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def status(self) -> int:
        return int(self.start.split()[1])


class Cut(Exception):
    """The connection ended before the message did. `got` is what came of it."""

    def __init__(self, got: bytes) -> None:
        super().__init__(got)
        self.got = got


def read_message(file: BinaryIO, is_reply: bool = False) -> Message:
    """The next message of a connection. Raises Cut."""
    start, headers = _read_head(file)
    if headers.get(b"transfer-encoding") == b"chunked":
        body = _read_chunks(file)
    elif is_reply and b"content-length" not in headers:
        body = file.read()
    else:
        body = _read(file, int(headers.get(b"content-length", b"0")))
    return Message(start, headers, body)


def _read(file: BinaryIO, size: int) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        data = file.read(size)
    if len(data) < size:
        raise Cut(data)
    return data


def _read_line(file: BinaryIO) -> bytes:
    line = b""
    with suppress(ConnectionResetError):
        line = file.readline()
    if not line.endswith(b"\r\n"):
        raise Cut(line)
    return line[:-2]


def _read_head(file: BinaryIO) -> tuple[bytes, dict[bytes, bytes]]:
    start, headers = _read_line(file), {}
    while line := _read_line(file):
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return start, headers


def _read_chunks(file: BinaryIO) -> bytes:
    pieces: list[bytes] = []
    try:
        while size := int(_read_line(file).partition(b";")[0], 16):
            pieces.append(_read(file, size))
            _read_line(file)
        while _read_line(file):
            pass  # a trailer
    except Cut as cut:
        raise Cut(b"".join([*pieces, cut.got])) from None
    return b"".join(pieces)


@dataclass(frozen=True)
class Asked:
    """A request as an engine got it: the `number`-th of all, the `at`-th of its connection, from 0."""

    message: Message
    number: int
    at: int


# Whether the connection is kept.
Answer = Callable[[Asked, socket.socket], bool]


def whole(body: bytes = b"{}", status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    """A complete reply with its length."""
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status,
        len(body),
        more,
        body,
    )


def saying(*pieces: bytes, is_kept: bool = True) -> Answer:
    """Answers each request with these bytes."""

    def answer(_: Asked, connection: socket.socket) -> bool:
        for piece in pieces:
            connection.sendall(piece)
        return is_kept

    return answer


class RawEngine:
    """An engine in this process, a thread a connection. GET is answered with 200, as /health would be.

    `most` is the largest number of requests that were at it at once.
    """

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.answer = answer
        self.asked: list[Message] = []
        self.at_once = self.most = self.connections = 0
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port = int(self._listening.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Listens no more, for one that was never entered."""
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with self._lock:
                    self.connections += 1
                    self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(Cut, OSError), connection, connection.makefile("rb") as file:
            at = 0
            while self._serve_one(connection, read_message(file), at):
                at += 1
        with self._lock:
            self._open.discard(connection)

    def _serve_one(self, connection: socket.socket, message: Message, at: int) -> bool:
        if message.start.startswith(b"GET "):
            connection.sendall(whole())
            return True
        with self._lock:
            asked = Asked(message, len(self.asked), at)
            self.asked.append(message)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            return self.answer(asked, connection)
        finally:
            with self._lock:
                self.at_once -= 1


class RawClient:
    """A connection to a gateway."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def reply(self) -> Message:
        """The next reply. Raises Cut."""
        return read_message(self.file, is_reply=True)

    def is_closed(self) -> bool:
        """Waits for the end of the connection; False if something else came."""
        with suppress(ConnectionResetError):
            return self.file.read(1) == b""
        return True


def post(body: bytes = b'{"model":"m"}', more: bytes = b"", version: bytes = b"1.1") -> bytes:
    """A request for a completion."""
    head = b"POST /v1/completions HTTP/%b\r\nhost: gateway\r\ncontent-type: application/json\r\n" % version
    return head + more + b"content-length: %d\r\n\r\n" % len(body) + body


GET_HEALTH = b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n"
