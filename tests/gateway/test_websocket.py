"""WebSockets to engines: the handshake is routed as a request is, then bytes go both ways untouched."""

import base64
import hashlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.gateway.world import DEADLINE_S, Gateway, backend, wait_for

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class SocketEngine:
    """Accepts WebSocket handshakes on raw sockets and sends back every byte, in capitals."""

    def __init__(self, answer: bytes = b"") -> None:
        self.heads: list[bytes] = []
        self.ended = threading.Event()
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(DEADLINE_S)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(DEADLINE_S)
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, _, rest = received.partition(b"\r\n\r\n")
        self.heads.append(head)
        if self._answer:
            connection.sendall(self._answer)
            return
        key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:"))
        accepted = base64.b64encode(hashlib.sha1(key.split(b":")[1].strip() + GUID).digest())
        lines = b"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: " + accepted
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n\r\nhello")
        while rest or (rest := connection.recv(65536)):
            connection.sendall(rest.upper())
            rest = b""
        self.ended.set()


@pytest.fixture
def engine() -> Iterator[SocketEngine]:
    made = SocketEngine()
    yield made
    made.close()


def connect(gateway: Gateway, target: str, early: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE_S)
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET {target} HTTP/1.1\r\nhost: g\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n"
    head += f"sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\nauthorization: Bearer mine\r\n\r\n"
    connection.sendall(head.encode() + early)
    return connection


def read_until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def test_bytes_go_both_ways(gateway: Gateway, engine: SocketEngine) -> None:
    gateway.serve({"voice": [backend(engine.url, model="org/voice 1")]})
    with connect(gateway, "/v1/realtime?model=voice&x=%2F", early=b"early ") as connection:
        head, _, rest = read_until(connection, b"EARLY ").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"x-sage-src: engine" in head
        assert b"sec-websocket-accept: " in head
        assert rest == b"helloEARLY "
        large = os.urandom(1 << 20).hex().encode()
        sending = threading.Thread(target=connection.sendall, args=(large + b"!",))
        sending.start()
        assert read_until(connection, b"!") == large.upper() + b"!"
        sending.join()
        assert gateway.client.get("/ready").json()["in_flight"] == 1
    wait_for(engine.ended.is_set, "the engine sees that the client has left")
    wait_for(lambda: gateway.client.get("/ready").json()["in_flight"] == 0, "nothing is in flight")
    lines = engine.heads[0].split(b"\r\n")
    assert lines[0] == b"GET /v1/realtime?model=org%2Fvoice+1&x=%2F HTTP/1.1"
    assert b"upgrade: websocket" in lines
    assert b"Bearer mine" not in engine.heads[0]


def test_the_engine_ends_it(gateway: Gateway) -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nbye"
    ending = SocketEngine(answer)
    gateway.serve({"voice": [backend(ending.url, model="voice")]})
    with connect(gateway, "/v1/realtime?model=voice") as connection:
        received = b""
        while data := connection.recv(65536):
            received += data
    ending.close()
    assert received.endswith(b"\r\n\r\nbye")


def test_the_engine_says_no(gateway: Gateway) -> None:
    refusing = SocketEngine(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
    gateway.serve({"voice": [backend(refusing.url, model="voice")]})
    with connect(gateway, "/v1/realtime?model=voice") as connection:
        received = b""
        while data := connection.recv(65536):
            received += data
    refusing.close()
    assert received.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"connection: close" in received
    assert received.endswith(b"\r\n\r\nno")


@pytest.mark.parametrize(
    ("target", "status"),
    [("/v1/realtime", b"400"), ("/v1/realtime?model=other", b"404"), ("/v1/other?model=voice", b"404")],
)
def test_what_is_not_there(gateway: Gateway, engine: SocketEngine, target: str, status: bytes) -> None:
    gateway.serve({"voice": [backend(engine.url, model="voice")]})
    with connect(gateway, target) as connection:
        assert connection.recv(65536).split()[1] == status
    assert engine.heads == []
