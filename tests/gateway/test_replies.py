"""Replies of engines cut into pieces in every way, and replies that are wrong in every way."""

import itertools
import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.heads import ReplyHead
from gateway.upstream import MAX_HEAD_BYTES, EngineConnection
from tests.gateway.rawengine import RawEngine
from tests.gateway.world import DEADLINE_S, Gateway, backend, wait_for

OK = b"HTTP/1.1 200 OK\r\n"
REQUEST = b'POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 13\r\n\r\n{"model":"m"}'


# More of them by `make fuzz`.
AT_LENGTH = settings(max_examples=int(os.environ.get("SAGE_FUZZ_EXAMPLES", "200")), deadline=None)


class Wire:
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        self.is_closed = self.is_paused = False

    def write(self, data: bytes) -> None:
        pass

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Heard:
    """What came of a reply, in the order in which a receiver is told."""

    def __init__(self) -> None:
        self.head: ReplyHead | None = None
        self.pieces: list[bytes] = []
        self.ends: list[str] = []

    def on_head(self, head: ReplyHead) -> bool:
        assert self.head is None
        self.head = head
        return True

    def on_piece(self, data: bytes) -> None:
        assert self.head is not None
        assert not self.ends
        self.pieces.append(data)

    def on_end(self) -> None:
        self.ends.append("end")

    def on_lost(self, reason: str, kind: str) -> None:
        self.ends.append(kind)

    def on_switched(self, connection: EngineConnection, head: bytes, rest: bytes) -> None:
        self.ends.append("switched")

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def connected() -> tuple[EngineConnection, Wire, list[EngineConnection]]:
    wire, pool = Wire(), []  # type: ignore[var-annotated]
    connection = EngineConnection(pool)
    connection.connection_made(wire)  # type: ignore[arg-type]
    return connection, wire, pool


def ask(connection: EngineConnection, pieces: list[bytes], *, closes: bool = False) -> Heard:
    heard = Heard()
    connection.send(heard, b"", b"")
    for piece in pieces:
        if not connection.transport.is_closing():
            connection.data_received(piece)
    if closes:
        connection.connection_lost(None)
    return heard


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


CUTS = st.lists(st.integers(0, 1 << 20), max_size=12)
TEXT = st.one_of(
    st.binary(max_size=200), st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"\n", b"HTTP/1.1 200 OK"])
)
LINES = st.lists(st.sampled_from([b"x-a: b\r\n", b"Content-Type: a/b\r\n", b"date: now\r\n"]), max_size=3)
INTERIM = st.lists(
    st.sampled_from([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nlink: <a>\r\n\r\n"]),
    max_size=3,
)


@st.composite
def replies(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """What goes before the body, the body on the wire, and `closes` if the connection's end is its own."""
    start = b"".join(draw(INTERIM)) + draw(st.sampled_from([OK, b"HTTP/1.1 404\r\n", b"HTTP/1.1 500 \r\n"]))
    start += b"".join(draw(LINES))
    kind = draw(st.sampled_from(["length", "chunks", "close"]))
    if kind == "length":
        body = draw(TEXT)
        return start + b"Content-Length: %d\r\n\r\n" % len(body), body, b""
    if kind == "close":
        return start + b"\r\n", draw(TEXT), b"closes"
    parts = [part for part in draw(st.lists(TEXT, max_size=4)) if part]
    chunks = [b"%x%b\r\n%b\r\n" % (len(part), draw(st.sampled_from([b"", b";a=b"])), part) for part in parts]
    trailers = draw(st.sampled_from([b"", b"x-t: 1\r\n", b"x-t:\r\n"]))
    return start + b"Transfer-Encoding: chunked\r\n\r\n", b"".join(chunks) + b"0\r\n%b\r\n" % trailers, b""


@AT_LENGTH
@given(replies(), CUTS, st.booleans())
def test_the_same_bytes_however_they_come(
    reply: tuple[bytes, bytes, bytes], cuts: list[int], is_bytewise: bool
) -> None:
    """And the connection is ready for another request, unless the reply needed its end."""
    head, body, closes = reply
    whole = head + body
    pieces = [whole[at : at + 1] for at in range(len(whole))] if is_bytewise else split(whole, cuts)
    connection, wire, pool = connected()
    heard = ask(connection, pieces, closes=bool(closes))
    assert (heard.body, heard.ends) == (body, ["end"])
    assert heard.head is not None
    assert head.endswith(heard.head.raw)
    if not closes:
        assert pool == [connection]
        assert not wire.is_closed
        pool.clear()
        again = ask(connection, pieces)
        assert (again.body, again.ends) == (body, ["end"])


@AT_LENGTH
@given(
    replies(), CUTS, st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"x", OK, b"HTTP/1.1 100 \r\n\r\n"])
)
def test_more_than_the_reply_is_never_passed_on(
    reply: tuple[bytes, bytes, bytes], cuts: list[int], extra: bytes
) -> None:
    head, body, closes = reply
    if closes:
        return  # there it is the body
    connection, wire, pool = connected()
    heard = ask(connection, split(head + body + extra, cuts))
    assert body.startswith(heard.body)
    assert wire.is_closed
    if heard.ends == ["end"]:
        connection.connection_lost(None)
        assert heard.body == body
    else:
        assert heard.ends == ["not_http"]
    assert pool == []


@AT_LENGTH
@given(replies(), st.integers(0, 1 << 20), st.binary(max_size=3), st.integers(0, 3), CUTS)
def test_a_damaged_reply_ends_once_and_is_never_an_exception(
    reply: tuple[bytes, bytes, bytes], at: int, put: bytes, gone: int, cuts: list[int]
) -> None:
    whole = reply[0] + reply[1]
    at %= len(whole)
    connection, _, pool = connected()
    heard = ask(connection, split(whole[:at] + put + whole[at + gone :], cuts))
    if connection not in pool:
        connection.connection_lost(None)
    assert len(heard.ends) == 1


@AT_LENGTH
@given(replies(), st.integers(0, 1 << 20), CUTS)
def test_a_reply_that_is_cut_off_is_not_taken_for_whole(
    reply: tuple[bytes, bytes, bytes], at: int, cuts: list[int]
) -> None:
    head, body, closes = reply
    whole = head + body
    at %= len(whole)
    connection, _, pool = connected()
    heard = ask(connection, split(whole[:at], cuts), closes=True)
    assert pool == []
    if heard.ends == ["end"]:
        assert closes
        assert at >= len(head)
    else:
        assert heard.ends == ["reset"]


def test_a_kept_connection_is_not_left_paused() -> None:
    """The client's connection may be full at the last piece, and nobody would go on for the next request."""
    connection, wire, pool = connected()
    heard = Heard()
    connection.send(heard, b"", b"")
    connection.data_received(OK + b"content-length: 2\r\n\r\na")
    connection.pause()
    assert wire.is_paused
    connection.data_received(b"b")
    assert (heard.ends, pool) == (["end"], [connection])
    assert not wire.is_paused


def test_interim_replies_without_number_go_no_deeper() -> None:
    connection, _, _ = connected()
    heard = ask(connection, [b"HTTP/1.1 100 C\r\n\r\n" * 20_000 + OK + b"content-length: 0\r\n\r\n"])
    assert heard.ends == ["end"]


# Over a real connection, which the engine does not end.
WRONG = {
    "length and chunks": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "length of letters": OK + b"content-length: two\r\n\r\n{}",
    "length below zero": OK + b"content-length: -2\r\n\r\n{}",
    "length too large to count": OK + b"content-length: 99999999999999999999999\r\n\r\n{}",
    "another coding": OK + b"transfer-encoding: gzip\r\n\r\n{}",
    "bad chunk": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "huge chunk": OK + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}",
    "more than its length": OK + b"content-length: 2\r\n\r\n{}{}",
    "a blank line more": OK + b"content-length: 2\r\n\r\n{}\r\n",
    "two replies": (OK + b"content-length: 2\r\n\r\n{}") * 2,
    "a body after 204": b"HTTP/1.1 204 No\r\n\r\n{}",
    "a head without end": OK + b"x-a: " + b"a" * (MAX_HEAD_BYTES + 10),
    "8 MiB of head": OK + b"x-a: " + b"a" * (8 << 20) + b"\r\n\r\n",
    "HTTP/0.9": b"{}",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "blank lines before": b"\r\n" + OK + b"content-length: 2\r\n\r\n{}",
    "status 99": b"HTTP/1.1 99 OK\r\ncontent-length: 2\r\n\r\n{}",
    "status 600": b"HTTP/1.1 600 OK\r\ncontent-length: 2\r\n\r\n{}",
    "status 999": b"HTTP/1.1 999 OK\r\ncontent-length: 2\r\n\r\n{}",
    "no colon": OK + b"x-a\r\ncontent-length: 2\r\n\r\n{}",
    "a folded line": OK + b"x-a: b\r\n c\r\ncontent-length: 2\r\n\r\n{}",
    "a NUL": OK + b"x-a: b\0c\r\ncontent-length: 2\r\n\r\n{}",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}",
    "another protocol": b"HTTP/1.1 101 Go\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nxx",
}


@pytest.fixture
def raw() -> Iterator[RawEngine]:
    with RawEngine() as running:
        yield running


def exchanged(gateway: Gateway) -> bytes:
    """All that the gateway writes until it closes, or until a whole reply of 2 bytes is there."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE_S) as connection:
        connection.sendall(REQUEST)
        received = b""
        while not (b"\r\n\r\n{}" in received or b'"src": "sage"}}' in received):
            data = connection.recv(65536)
            if not data:
                break
            received += data
    return received


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reply_is_told_at_once(gateway: Gateway, raw: RawEngine, name: str) -> None:
    """Though the engine keeps the connection open; and what comes next is answered as ever."""
    gateway.serve({"m": [backend(raw.url, model="m")]})
    raw.pieces = [WRONG[name]]
    received = exchanged(gateway)
    if received:
        assert received.startswith(b"HTTP/1.1 502 "), received[:200]
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_reply"
    raw.pieces = [OK + b"content-length: 2\r\n\r\n{}"]
    assert b"\r\n\r\n{}" in exchanged(gateway)
    assert "Traceback" not in "".join(gateway.output)


def test_a_slow_client_leaves_no_connection_that_hangs(gateway: Gateway, raw: RawEngine) -> None:
    gateway.serve({"m": [backend(raw.url, model="m")]})
    for size in range(3_000_000, 4_200_000, 300_000):
        raw.pieces = [OK + b"content-length: %d\r\n\r\n" % size + b"x" * size]
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            slow.connect(("127.0.0.1", gateway.port))
            before = len(raw.requests)
            slow.sendall(REQUEST)
            wait_for(lambda before=before: len(raw.requests) > before, "the engine is asked")  # type: ignore[misc]
            raw.pieces = [OK + b"content-length: 2\r\n\r\n{}"]
            assert b"\r\n\r\n{}" in exchanged(gateway)
