"""One HTTP request and its answer. Not http.client: its e-mail parser is a sixth of a supervisor's memory."""

import socket
import time
from collections.abc import Iterator, Mapping
from typing import BinaryIO

MAX_LINE = 65536
MAX_HEADERS = 256
MAX_BODY = 8 * 1024 * 1024


class Unreadable(ValueError):
    """What came is no HTTP; str() says what it is."""


def request_bytes(method: str, path: str, host: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """The request as it is sent; the connection is for this one only."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + (body or b"")


def exchange(connection: socket.socket, request: bytes, deadline: float) -> tuple[int, bytes]:
    """Status and body, MAX_BODY bytes of it at most; of one that was cut short, what there is.

    `deadline` is monotonic. Raises OSError (TimeoutError among them) and Unreadable.
    """
    connection.sendall(request)
    with connection.makefile("rb") as stream:
        while True:
            status = _status(stream)
            headers = dict(_headers(stream))
            if status >= 200:  # else an interim answer, which the real one follows
                break
        if status in (204, 304):
            return status, b""
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return status, _joined(_chunks(stream, deadline))
        length = headers.get("content-length", "")
        size = int(length) if length.isascii() and length.isdigit() else MAX_BODY
        return status, _joined(_pieces(stream, min(size, MAX_BODY), deadline))


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise Unreadable("a line that does not end")
    return line.rstrip(b"\r\n")


def _status(stream: BinaryIO) -> int:
    line = _line(stream)
    if not line:
        raise ConnectionResetError(None, "closed without an answer")
    version, _, rest = line.partition(b" ")
    code = rest[:3]
    if not version.startswith(b"HTTP/1.") or len(code) < 3 or not code.isdigit():
        raise Unreadable(f"no HTTP: {line[:80].decode(errors='replace')}")
    return int(code)


def _headers(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    for _ in range(MAX_HEADERS):
        line = _line(stream)
        if not line:
            return
        name, _, value = line.decode("latin-1").partition(":")
        yield name.strip().lower(), value.strip()
    raise Unreadable("headers that do not end")


def _pieces(stream: BinaryIO, size: int, deadline: float) -> Iterator[bytes]:
    """So many bytes, or fewer where the stream ends before. A socket's timeout bounds only each reading."""
    while size > 0 and (piece := stream.read1(min(size, MAX_LINE))):  # type: ignore[attr-defined]
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
        size -= len(piece)
        yield piece


def _chunks(stream: BinaryIO, deadline: float) -> Iterator[bytes]:
    while True:
        line = _line(stream).partition(b";")[0].strip()
        try:
            size = int(line, 16)
        except ValueError:
            raise Unreadable("chunks that are none") from None
        if size <= 0:
            return
        yield from _pieces(stream, size, deadline)
        _line(stream)


def _joined(pieces: Iterator[bytes]) -> bytes:
    body = bytearray()
    for piece in pieces:
        body += piece
        if len(body) >= MAX_BODY:
            break
    return bytes(body[:MAX_BODY])
