"""HTTP to the byte: order, heads, lengths and connections, at both sides of the gateway."""

import gzip
import json
import socket
import struct
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage_reconcile.model import codec
from tests.gateway.wire import (
    GET_HEALTH,
    Asked,
    Cut,
    RawClient,
    RawEngine,
    post,
    saying,
    whole,
)
from tests.gateway.world import DEADLINE_S, Gateway, backend, table, wait_for

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def told(asked: Asked) -> bytes:
    """A reply that says what was asked."""
    return whole(asked.message.body)


def echo(asked: Asked, connection: socket.socket) -> bool:
    connection.sendall(told(asked))
    return True


@pytest.fixture
def engine(stack: ExitStack, gateway: Gateway) -> RawEngine:
    """Serves `m` alone; it repeats what it was asked."""
    one = stack.enter_context(RawEngine(echo))
    gateway.serve({"m": [backend(one.url, model="m")]})
    return one


@pytest.fixture
def client(stack: ExitStack, gateway: Gateway) -> RawClient:
    return stack.enter_context(RawClient(gateway.port))


def numbered(number: int) -> bytes:
    return json.dumps({"model": "m", "n": number}).encode()


def test_pipelined_requests_are_answered_in_their_order(engine: RawEngine, client: RawClient) -> None:
    """Those of engines and those of the gateway itself mixed; the first one takes longest."""
    go_on = threading.Event()

    def answer(asked: Asked, connection: socket.socket) -> bool:
        if not asked.number:
            go_on.wait(DEADLINE_S)
        return echo(asked, connection)

    engine.answer = answer
    unknown = post(b'{"model":"nobody"}')
    client.send(post(numbered(0)), GET_HEALTH, post(numbered(1)) + unknown + GET_HEALTH, post(numbered(2)))
    wait_for(lambda: engine.asked, "the first one has arrived")
    go_on.set()
    replies = [client.reply() for _ in range(6)]
    assert [reply.status for reply in replies] == [200, 200, 200, 404, 200, 200]
    assert [replies[at].body for at in (0, 2, 5)] == [numbered(0), numbered(1), numbered(2)]
    assert [b"pid" in replies[at].body for at in (1, 4)] == [True, True]


def test_any_number_of_pipelined_requests(engine: RawEngine, client: RawClient) -> None:
    """Also of those that need no engine, whose answers follow one another in one breath."""
    go_on = threading.Event()

    def answer(asked: Asked, connection: socket.socket) -> bool:
        go_on.wait(DEADLINE_S)
        return echo(asked, connection)

    engine.answer = answer
    client.send(post(), post(b'{"model":"x"}') * 2000, post())
    wait_for(lambda: engine.asked, "the first one has arrived")
    go_on.set()
    statuses = [client.reply().status for _ in range(2002)]
    assert statuses == [200, *[404] * 2000, 200]


def test_a_refusal_of_the_key_ahead_of_the_body_leaves_the_connection(
    stack: ExitStack, tmp_path: Path
) -> None:
    engine = stack.enter_context(RawEngine(echo))
    gateway = stack.enter_context(Gateway(tmp_path, environ={"SAGE_API_KEYS": "k"}))
    gateway.write(codec.encode(table({"m": [backend(engine.url, model="m")]})))
    client = stack.enter_context(RawClient(gateway.port))
    head, _, body = post().partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.reply().status == 401
    key = b"authorization: Bearer k\r\n"
    client.send(body)

    def is_served() -> bool:
        client.send(post(more=key))
        return client.reply().status == 200

    wait_for(is_served, "the gateway serves by the table")
    assert {asked.body for asked in engine.asked} == {b'{"model":"m"}'}


def test_a_client_of_http_1_0(engine: RawEngine, gateway: Gateway, stack: ExitStack) -> None:
    event = b"data: {}\n\n"
    engine.answer = saying(CHUNKED + chunk(event), chunk(event) + b"0\r\n\r\n")
    client = stack.enter_context(RawClient(gateway.port))
    client.send(post(version=b"1.0"))
    reply = client.reply()
    assert reply.headers.keys().isdisjoint({b"transfer-encoding", b"content-length"})
    assert (reply.status, reply.headers[b"connection"], reply.body) == (200, b"close", event * 2)
    engine.answer = echo
    client = stack.enter_context(RawClient(gateway.port))
    client.send(post(more=b"connection: keep-alive\r\n", version=b"1.0"))
    assert client.reply().body == b'{"model":"m"}'
    assert client.is_closed()


def test_the_body_is_asked_for(engine: RawEngine, client: RawClient) -> None:
    head, _, body = post(more=b"expect: 100-continue\r\n").partition(b"\r\n\r\n")
    for _ in range(2):
        client.send(head + b"\r\n\r\n")
        assert client.file.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert client.reply().body == body
    assert b"expect" not in engine.asked[0].headers


def test_a_body_that_is_not_wanted_is_not_asked_for(engine: RawEngine, client: RawClient) -> None:
    client.send(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999\r\n")
    client.send(b"expect: 100-continue\r\n\r\n")
    reply = client.reply()
    assert (reply.status, reply.headers[b"connection"]) == (413, b"close")
    assert client.is_closed()


def test_a_refusal_ahead_of_the_body_leaves_the_connection(stack: ExitStack, tmp_path: Path) -> None:
    size = 3 << 19
    engine = stack.enter_context(RawEngine(echo))
    gateway = stack.enter_context(Gateway(tmp_path, "--max-body-mib", "1"))
    gateway.serve({"m": [backend(engine.url, model="m")]})
    client = stack.enter_context(RawClient(gateway.port))
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"
    client.send(head + b"content-length: %d\r\n\r\n" % size)
    assert client.reply().status == 413
    client.send(b" " * size, post(numbered(1)))
    assert client.reply().body == numbered(1)
    client.send(head + b"transfer-encoding: chunked\r\n\r\n")
    client.send(*[chunk(b" " * (size // 8))] * 8, b"0\r\n\r\n", post(numbered(2)))
    assert client.reply().status == 413
    assert client.reply().body == numbered(2)


@pytest.mark.parametrize("is_split", [False, True])
def test_an_upgrade_is_not_taken(engine: RawEngine, client: RawClient, is_split: bool) -> None:
    upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    request = post(numbered(0), upgrade)
    if is_split:
        head, _, body = request.partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        client.send(body[:5])
        client.send(body[5:] + post(numbered(1)))
    else:
        client.send(request + post(numbered(1)))
    assert [client.reply().body for _ in range(2)] == [numbered(0), numbered(1)]
    client.send(post(numbered(2)))
    assert client.reply().body == numbered(2)
    assert engine.asked[0].headers.keys().isdisjoint({b"upgrade", b"connection", b"http2-settings"})


def test_a_reply_that_ends_with_its_connection(engine: RawEngine, client: RawClient) -> None:
    engine.answer = saying(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhalf", b"half", is_kept=False)
    client.send(post())
    reply = client.reply()
    assert (reply.status, reply.headers[b"connection"], reply.body) == (200, b"close", b"halfhalf")


def test_trailers_pass(engine: RawEngine, client: RawClient) -> None:
    trailers = b"0\r\nx-sum: 7\r\nx-more: 8\r\n\r\n"
    engine.answer = saying(CHUNKED + chunk(b"data: 1\n\n"), trailers)
    client.send(post())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.file.read(1)
    wanted = chunk(b"data: 1\n\n") + trailers
    assert client.file.read(len(wanted)) == wanted
    client.send(GET_HEALTH)
    assert client.reply().status == 200


@pytest.mark.parametrize("is_split", [False, True])
def test_interim_heads_are_not_the_reply(engine: RawEngine, client: RawClient, is_split: bool) -> None:
    interim = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"]

    def answer(asked: Asked, connection: socket.socket) -> bool:
        pieces = [*interim, told(asked)]
        for piece in pieces if is_split else [b"".join(pieces)]:
            connection.sendall(piece)
        return True

    engine.answer = answer
    for number in range(3):
        client.send(post(numbered(number)))
        assert client.reply().body == numbered(number)
    assert engine.connections == 1


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"evil"])
@pytest.mark.parametrize("is_apart", [False, True])
def test_more_than_a_reply_reaches_nobody(
    engine: RawEngine, gateway: Gateway, stack: ExitStack, more: bytes, is_apart: bool
) -> None:
    """Sent along with the reply it breaks the reply; sent later it ends a connection that nobody uses."""
    ended = threading.Event()

    def answer(asked: Asked, connection: socket.socket) -> bool:
        if asked.number:
            return echo(asked, connection)
        if not is_apart:
            connection.sendall(told(asked) + more)
            return True
        connection.sendall(told(asked))
        ended.wait(DEADLINE_S)
        connection.sendall(more)
        assert connection.recv(1) == b"", "the gateway ends it"
        return False

    engine.answer = answer
    first, second = (stack.enter_context(RawClient(gateway.port)) for _ in range(2))
    first.send(post(numbered(0)))
    assert first.reply().status == (200 if is_apart else 502)
    ended.set()
    if is_apart:
        wait_for(lambda: not engine.at_once, "the gateway has ended the connection")
    second.send(post(numbered(1)))
    assert second.reply().body == numbered(1)
    assert engine.connections == 2


@pytest.mark.parametrize("model", ["m", "alias"])
def test_a_packed_body(engine: RawEngine, gateway: Gateway, client: RawClient, model: str) -> None:
    one = backend(engine.url, model="m")
    gateway.serve({"m": [one], "alias": [one]})
    plain = json.dumps({"model": model, "prompt": "hi"}).encode()
    packed = gzip.compress(plain)
    client.send(post(packed, b"content-encoding: gzip\r\n"))
    assert client.reply().status == 200
    [got] = engine.asked
    if model == "m":
        assert (got.body, got.headers[b"content-encoding"]) == (packed, b"gzip")
    else:
        assert got.body == plain.replace(b"alias", b"m")
        assert b"content-encoding" not in got.headers


def test_a_connection_that_the_engine_closes_costs_nothing(
    engine: RawEngine, gateway: Gateway, client: RawClient
) -> None:
    """It takes the second request of each connection, and closes instead of answering."""

    def answer(asked: Asked, connection: socket.socket) -> bool:
        return not asked.at and echo(asked, connection)

    engine.answer = answer
    for number in range(20):
        client.send(post(numbered(number)))
        assert client.reply().body == numbered(number)
    assert engine.connections >= 20
    assert 'kind="reset"' not in gateway.client.get("/metrics").text


def reset(connection: socket.socket) -> None:
    """Ends a connection as a killed process does that has not read everything."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def rest_of(client: RawClient, got: bytes) -> bytes:
    """The rest of a reply of which `got` is there. Raises Cut if its head promised more."""
    rest = client.file.read()
    if b"content-length" in got or (b"transfer-encoding" in got and not rest.endswith(b"0\r\n\r\n")):
        raise Cut(rest)
    return rest


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(
    "head",
    [b"content-length: 100\r\n\r\nhalf", b"\r\nhalf", b"transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"],
)
def test_a_reply_that_breaks_is_never_taken_for_whole(
    engine: RawEngine, client: RawClient, version: bytes, head: bytes
) -> None:
    go_on = threading.Event()

    def answer(_: Asked, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head)
        go_on.wait(DEADLINE_S)
        reset(connection)
        return False

    engine.answer = answer
    client.send(post(version=version))
    got = b""
    while not got.endswith(b"half"):
        got += client.file.read(1)
    go_on.set()
    with pytest.raises((Cut, ConnectionResetError)):
        rest_of(client, got)
