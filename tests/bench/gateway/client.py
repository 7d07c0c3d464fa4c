"""A small HTTP/1.1 client that hides nothing: the bytes of a body as they came, and what broke."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from tests.bench.gateway.sage_target import MODEL
from tests.bench.gateway.stream_load import PATH

CONNECT_S = 10.0
_LINE = b"\r\n"


class ReplyError(Exception):
    """The reply was not whole, or no HTTP; the text says what came."""


@dataclass
class Reply:
    """`body` is what has arrived so far, without chunk framing; `is_whole` once its end has."""

    status: int
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    is_whole: bool = False


def chat(prompt: str, is_stream: bool = False, model: str = MODEL) -> bytes:
    """The body of a chat request."""
    messages = [{"role": "user", "content": prompt}]
    return json.dumps({"model": model, "messages": messages, "stream": is_stream}).encode()


class Connection:
    """One connection; usable for a next request where the reply before was read to its end."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self._port = port
        self._headers = dict(headers)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        opening = asyncio.open_connection("127.0.0.1", self._port)
        self._reader, self._writer = await asyncio.wait_for(opening, CONNECT_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass  # the other side was quicker

    async def ask(self, body: bytes = b"", path: str = PATH) -> Reply:
        """Sends a request, GET where it has no body; the head of its reply. Raises ReplyError and OSError."""
        await self.send(body, path)
        return await self._head()

    async def send(self, body: bytes, path: str, announced: int | None = None) -> None:
        """Sends a request; with `announced`, one that says it is longer than it is."""
        lines = [
            f"{'POST' if body else 'GET'} {path} HTTP/1.1",
            f"host: 127.0.0.1:{self._port}",
            *(f"{name}: {value}" for name, value in self._headers.items()),
        ]
        if body:
            lines += ["content-type: application/json", f"content-length: {announced or len(body)}"]
        self._writer.write("\r\n".join(lines).encode() + 2 * _LINE + body)
        await self._writer.drain()

    async def _head(self) -> Reply:
        try:
            head = await self._reader.readuntil(2 * _LINE)
        except asyncio.IncompleteReadError as error:
            raise ReplyError(f"closed in the head of the reply, after {error.partial[:100]!r}") from error
        first, *rest = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in rest if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        words = first.split(" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise ReplyError(f"no HTTP: {first[:100]}")
        return Reply(int(words[1]), headers)

    async def read(self, reply: Reply) -> Reply:
        """Reads the body to its end. Raises ReplyError if it has none."""
        while await self.read_some(reply):
            pass
        return reply

    async def read_some(self, reply: Reply) -> bool:
        """Reads a chunk, or all of a body of a known length; False once the body is whole."""
        try:
            if "chunked" in reply.headers.get("transfer-encoding", ""):
                size = int(await self._reader.readuntil(_LINE), 16)
                reply.body += (await self._reader.readexactly(size + 2))[:-2]
                reply.is_whole = size == 0
            else:
                reply.body += await self._reader.readexactly(int(reply.headers.get("content-length", 0)))
                reply.is_whole = True
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise ReplyError(f"the body broke off after {len(reply.body)} bytes") from error
        return not reply.is_whole
