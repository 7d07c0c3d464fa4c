"""WebSockets to engines (/v1/realtime): the handshake is an exchange, then bytes go both ways."""

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from gateway import heads
from gateway.asked import Asked
from gateway.errors import missing_model
from gateway.heads import Headers
from gateway.member import Member
from gateway.upstream import EngineConnection

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.protocol import GatewayProtocol

REALTIME_PATH = b"/v1/realtime"
# What a client may send before the engine has agreed.
MAX_EARLY_BYTES = 64 << 10


def is_asked_for(url: bytes, headers: Headers) -> bool:
    """Whether a GET with an upgrade is for an engine."""
    return url.partition(b"?")[0] == REALTIME_PATH and heads.get(headers, b"upgrade").lower() == b"websocket"


class AskedToSwitch(Asked):
    """The handshake of a WebSocket: its model is named by the query."""

    def __init__(self, url: bytes, headers: Headers) -> None:
        super().__init__(REALTIME_PATH, url.partition(b"#")[0], headers)

    def read(self, limit: int) -> None:
        """Reads the query. Raises RequestError where it names no model."""
        self._query = parse_qsl(self.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True)
        self.model = next((value for name, value in self._query if name == "model"), "")
        if not self.model:
            raise missing_model()

    def for_member(self, member: Member, model: str) -> tuple[bytes, bytes]:
        """The handshake as this backend gets it; its model by the engine's name."""
        target = self.target
        if model != self.model:
            pairs = [(name, model if name == "model" else value) for name, value in self._query]
            target = REALTIME_PATH + b"?" + urlencode(pairs, encoding="latin-1", errors="replace").encode()
        lines = heads.to_engine(self.headers, self.seen.get(b"connection", b""), self.trace)
        last = b"connection: upgrade\r\nupgrade: websocket\r\nx-request-id: %b\r\n\r\n" % self.request_id
        return b"".join((b"GET ", member.prefix, target, member.head_rest, lines, last)), b""


class Tunnel:
    """The client's side: what it sends waits for the engine to agree, and then goes on as it comes."""

    def __init__(self, client: "GatewayProtocol") -> None:
        self._client = client
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._engine: asyncio.Transport | None = None

    def from_client(self, data: bytes) -> None:
        """Takes what the client sends."""
        if self._engine is not None:
            self._engine.write(data)
            return
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > MAX_EARLY_BYTES:
            self._client.flow.pause_reading()

    def open(self, attempt: "Attempt", connection: EngineConnection, head: bytes, rest: bytes) -> None:
        """The engine has switched with this head; `rest` is what it sent after it."""
        self._engine = connection.transport
        self._client.transport.write(_switched(head, attempt) + rest)
        connection.transport.set_protocol(_EngineSide(self._client, attempt))
        if self._early:
            self._engine.write(b"".join(self._early))
            self._early.clear()
        self._client.flow.resume_reading()


class _EngineSide(asyncio.Protocol):
    def __init__(self, client: "GatewayProtocol", attempt: "Attempt") -> None:
        self._client = client
        self._attempt = attempt

    def data_received(self, data: bytes) -> None:
        self._attempt.bytes_out += len(data)
        self._client.transport.write(data)

    def pause_writing(self) -> None:
        self._client.flow.pause_reading()

    def resume_writing(self) -> None:
        self._client.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._attempt.exchange.on_tunnel_closed(self._attempt)


def _switched(head: bytes, attempt: "Attempt") -> bytes:
    """The engine's head with sage's lines; `connection` and `upgrade` belong to it here."""
    lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(_RENEWED)]
    return b"\r\n".join(lines) + b"\r\n" + attempt.exchange.added_lines(b"engine") + b"\r\n"


_RENEWED = (b"x-request-id:", b"x-sage-src:")
