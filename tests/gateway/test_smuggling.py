"""Requests that two readers may take for different ones: none is taken, and none is made of another's body.

Floods and odd ends of connections, too: the worker lives, in bounded memory, and its log stays quiet.
"""

import gzip
import json
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.rawengine import RawEngine
from tests.gateway.world import DEADLINE_S, Gateway, backend, wait_for

BODY = b'{"model":"m"}'
HIDDEN = b"POST /v1/embeddings HTTP/1.1\r\nhost: g\r\ncontent-length: 13\r\n\r\n" + BODY
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
UPGRADE = b"connection: upgrade\r\nupgrade: h2c\r\n"
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
# More of them by `make fuzz`.
AT_LENGTH = settings(
    max_examples=int(os.environ.get("SAGE_FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LAST = b"GET /health HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[RawEngine]:  # type: ignore[override]
    with RawEngine(REPLY) as running:
        yield running


@pytest.fixture(scope="module")
def served(gateway: Gateway, engine: RawEngine) -> Gateway:
    gateway.serve({"m": [backend(engine.url, model="m")]})
    return gateway


@pytest.fixture(autouse=True)
def unharmed(served: Gateway) -> Iterator[None]:
    before = workers(served)
    yield
    assert workers(served) == before
    assert served.client.get("/health").status_code == 200
    assert "Traceback" not in "".join(served.output)


def workers(gateway: Gateway) -> list[int]:
    return [child.pid for child in psutil.Process(gateway.process.pid).children(recursive=True)]


def resident_mib(gateway: Gateway) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in workers(gateway)) / (1 << 20)


def post(more: bytes = b"", body: bytes = BODY, *, is_measured: bool = True) -> bytes:
    length = b"content-length: %d\r\n" % len(body) if is_measured else b""
    return b"POST /v1/completions HTTP/1.1\r\nhost: g\r\n" + more + length + b"\r\n" + body


def talk(gateway: Gateway, sent: bytes) -> list[tuple[int, bytes]]:
    """Status and body of every reply, until the gateway closes; a request that closes is sent at the end."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE_S) as connection:
        received = b""
        try:
            connection.sendall(sent + LAST)
            while data := connection.recv(65536):
                received += data
        except (ConnectionResetError, BrokenPipeError):
            pass
    return list(parsed(received))


def parsed(received: bytes) -> Iterator[tuple[int, bytes]]:
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        yield int(head.split()[1]), rest[:length]
        received = rest[length:]


REFUSED = {
    "both": post(CHUNKED + b"content-length: 5\r\n", b"0\r\n\r\n" + HIDDEN, is_measured=False),
    "both, the other way": post(b"content-length: 5\r\n" + CHUNKED, b"0\r\n\r\n" + HIDDEN, is_measured=False),
    "unknown coding": post(b"transfer-encoding: xchunked\r\n"),
    "coding not last": post(b"transfer-encoding: chunked, identity\r\n", CHUNKS, is_measured=False),
    "coding before": post(b"transfer-encoding: gzip, chunked\r\n", CHUNKS, is_measured=False),
    "two codings": post(CHUNKED + b"transfer-encoding: identity\r\n", CHUNKS, is_measured=False),
    "space before colon": post(b"transfer-encoding : chunked\r\n", CHUNKS, is_measured=False),
    "vertical tab": post(b"transfer-encoding:\x0bchunked\r\n", CHUNKS, is_measured=False),
    "folded coding": post(b"transfer-encoding:\r\n chunked\r\n", CHUNKS, is_measured=False),
    "same length twice": post(b"content-length: 13\r\n"),
    "two lengths": post(b"content-length: 5\r\n"),
    "signed": post(b"content-length: +13\r\n", is_measured=False),
    "negative": post(b"content-length: -13\r\n", is_measured=False),
    "list": post(b"content-length: 13, 13\r\n", is_measured=False),
    "blank inside": post(b"content-length: 1 3\r\n", is_measured=False),
    "hexadecimal": post(b"content-length: 0xd\r\n", is_measured=False),
    "no digits": post(b"content-length: \r\n", is_measured=False),
    "too long to count": post(b"content-length: 99999999999999999999999\r\n", is_measured=False),
    "folded line": post(b"x-a: b\r\n c\r\n"),
    "bare line feeds": post().replace(b"\r\n", b"\n"),
    "one bare line feed": post(b"x-a: b\nx-c: d\r\n"),
    "bare return": post(b"x-a: b\rx-c: d\r\n"),
    "NUL": post(b"x-a: b\0c\r\n"),
    "NUL in a name": post(b"x\0a: b\r\n"),
    "no colon": post(b"x-a\r\n"),
    "no name": post(b": b\r\n"),
    "blank before the first": post().replace(b"host:", b" host:"),
    "chunk too large to count": post(CHUNKED, b"fffffffffffffffff\r\n" + BODY, is_measured=False),
    "negative chunk": post(CHUNKED, b"-1\r\n" + BODY, is_measured=False),
    "chunk with prefix": post(CHUNKED, b"0x" + CHUNKS, is_measured=False),
    "line feed in an extension": post(CHUNKED, CHUNKS.replace(b"d\r\n", b"d;a\nb\r\n"), is_measured=False),
    "chunks by line feeds": post(CHUNKED, CHUNKS.replace(b"\r\n", b"\n"), is_measured=False),
    "chunk longer than told": post(CHUNKED, b"5\r\n" + BODY + b"\r\n0\r\n\r\n", is_measured=False),
    "blank after a chunk's size": post(CHUNKED, CHUNKS.replace(b"d\r\n", b"d \r\n"), is_measured=False),
    "two types": post(b"content-type: application/json\r\ncontent-type: multipart/form-data; boundary=b\r\n"),
    "two encodings": post(b"content-encoding: gzip\r\ncontent-encoding: identity\r\n", gzip.compress(BODY)),
    "more headers than anybody needs": post(b"".join(b"a%d:\r\n" % number for number in range(5000))),
    "connect": b"CONNECT /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: %d\r\n\r\n" % len(HIDDEN)
    + HIDDEN,
    "connect elsewhere": b"CONNECT far:443 HTTP/1.1\r\nhost: far\r\n\r\n" + HIDDEN,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(190),
    "no such method": post().replace(b"POST", b"STEAL"),
    "no such version": post().replace(b"HTTP/1.1", b"HTTP/1.10"),
    "raw bytes in a path": post().replace(b"completions", b"completions?\xff"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_nothing_goes_on(served: Gateway, engine: RawEngine, name: str) -> None:
    before = len(engine.requests)
    replies = talk(served, REFUSED[name])
    status, body = replies[0]
    assert 400 <= status < 500
    assert json.loads(body)["error"]["src"] == "sage"
    assert len(engine.requests) == before


TAKEN = {
    "chunks": post(CHUNKED, CHUNKS, is_measured=False),
    "an extension": post(CHUNKED, CHUNKS.replace(b"d\r\n", b"d;a=b\r\n"), is_measured=False),
    "a tab": post(b"transfer-encoding:\tchunked\r\n", CHUNKS, is_measured=False),
    "trailers": post(
        CHUNKED, CHUNKS[:-2] + b"x-trailer: yes\r\ncontent-encoding: gzip\r\n\r\n", is_measured=False
    ),
    "blank lines before": b"\r\n\r\n" + post(),
    "absolute": post().replace(b"/v1/", b"http://far/v1/"),
    "absolute, escaped": post().replace(b"/v1/", b"http://far/%761/"),
    "an upgrade": post(UPGRADE),
    "an upgrade and chunks": post(UPGRADE + CHUNKED, CHUNKS, is_measured=False),
    "a request in the body": post(
        UPGRADE, b'{"model":"m","x":"' + HIDDEN.replace(b'"', b"'").replace(b"\r\n", b"  ") + b'"}'
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken_as_one(served: Gateway, engine: RawEngine, name: str) -> None:
    before = len(engine.requests)
    assert [status for status, _ in talk(served, TAKEN[name])] == [200, 200]
    assert len(engine.requests) == before + 1
    head = engine.requests[-1].lower().partition(b"\r\n\r\n")[0] + b"\r\n"
    assert head.startswith(b"post /v1/completions http/1.1\r\n")
    for dropped in (b"x-trailer", b"content-encoding", b"transfer-encoding", b"upgrade", b"host: far"):
        assert dropped not in head


@pytest.mark.parametrize("path", [b"/health", b"/v1/nothing/there%20", b"/admin/set_policy"])
def test_a_body_is_no_request_where_an_upgrade_is_asked_for(
    served: Gateway, engine: RawEngine, path: bytes
) -> None:
    before = len(engine.requests)
    sent = post(UPGRADE, HIDDEN).replace(b"/v1/completions", path, 1)
    assert len(talk(served, sent)) == 2
    assert len(engine.requests) == before


def test_what_follows_a_request_takes_nothing_from_it(served: Gateway, engine: RawEngine) -> None:
    before = len(engine.requests)
    replies = talk(served, post() + post() + b"\x00\x01nonsense\r\n\r\n")
    assert replies == [(200, b"{}"), (200, b"{}")]
    assert len(engine.requests) == before + 2


def test_a_key_of_one_header_is_not_remembered_for_another(tmp_path: Path, engine: RawEngine) -> None:
    """A proxy may send requests of several clients over one connection."""
    ask = post(b"authorization: Basic c2hhcmVk\r\nx-api-key: KEY\r\n")
    with Gateway(tmp_path, environ={"SAGE_API_KEYS": "right"}) as gateway:
        gateway.client.headers["authorization"] = "Bearer right"
        gateway.serve({"m": [backend(engine.url, model="m")]})
        sent = (
            ask.replace(b"KEY", b"right") + ask.replace(b"KEY", b"wrong") + ask.replace(b"x-api-key", b"x-b")
        )
        assert [status for status, _ in talk(gateway, sent)][:3] == [200, 401, 401]


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (DEEP, 400),
        (b'{"model":"m","a":' + DEEP + b"}", 400),
        (b'{"model":' + DEEP + b"}", 400),
        (b'{"model":{"a":1}}', 400),
        (b'{"model":"' + b"x" * (1 << 20) + b'"}', 404),
        (b'{"model":"m","max_tokens":1' + b"0" * 4000 + b"}", 200),
    ],
    ids=["deep", "deep inside", "deep model", "object", "long", "endless number"],
)
def test_odd_bodies(served: Gateway, body: bytes, status: int) -> None:
    answered, reply = talk(served, post(body=body))[0]
    assert answered == status
    assert len(reply) < 1000


@pytest.mark.parametrize(
    "body", [DEEP, b'{"policy":"fifo","x":' + DEEP + b"}", b'{"policy":"\xff"}', b"{", b""]
)
def test_odd_bodies_of_administrators(served: Gateway, body: bytes) -> None:
    reply = served.client.post("/admin/set_policy", content=body)
    assert (reply.status_code, reply.json()["error"]["src"]) == (400, "sage")


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=abc", ";;,,=", "*/*;q=x", "a" * 5000]
)
def test_odd_wishes_of_scrapers(served: Gateway, accept: str) -> None:
    reply = served.client.get("/metrics", headers={"accept": accept})
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")


def test_names_that_nobody_has_are_not_repeated_at_length(served: Gateway) -> None:
    for path in ("/v1/models/", "/v2/", "/v1/../"):
        reply = served.client.get(path + "x" * 30_000)
        assert reply.status_code == 404
        assert len(reply.content) < 1000


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [(post(), b"HTTP/1.1 200 "), (post(body=b"{}"), b"HTTP/1.1 400 "), (post(UPGRADE), b"HTTP/1.1 200 ")],
    ids=["good", "refused", "upgrades"],
)
def test_ten_thousand_requests_in_one_write(served: Gateway, request_bytes: bytes, answer: bytes) -> None:
    count = 10_000
    before = resident_mib(served)
    with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE_S) as connection:
        writing = threading.Thread(target=connection.sendall, args=(request_bytes * count + LAST,))
        writing.start()
        received = b"".join(iter(lambda: connection.recv(1 << 20), b""))
        writing.join()
    assert received.count(answer) == count + (answer == b"HTTP/1.1 200 ")
    assert resident_mib(served) - before < 24


@pytest.mark.parametrize(
    "request_bytes",
    [post(), post(body=b"{}"), LAST.replace(b"close", b"keep-alive")],
    ids=["engine", "refused", "own"],
)
def test_who_reads_nothing_is_not_written_for(served: Gateway, request_bytes: bytes) -> None:
    before = resident_mib(served)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.connect(("127.0.0.1", served.port))
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.sendall(request_bytes * 500_000)
        assert resident_mib(served) - before < 24


SLOW = [
    b"",
    b"POST /v1/comp",
    post()[:60],
    post()[:-5],
    post(CHUNKED, CHUNKS[:7], is_measured=False),
    post(),
    post() * 3,
    post(body=b"{}") * 50,
    post(body=BODY[:-1] + b" " * 300_000 + b"}"),
    LAST.replace(b"close", b"keep-alive") * 5,
]


@AT_LENGTH
@given(
    st.lists(
        st.tuples(st.sampled_from(SLOW), st.sampled_from(["reset", "close", "half", "read"])), min_size=1
    )
)
def test_connections_that_end_at_any_moment(served: Gateway, ends: list[tuple[bytes, str]]) -> None:
    for sent, how in ends:
        with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE_S) as connection:
            connection.sendall(sent)
            if how == "read" and sent.endswith((BODY, b"\r\n\r\n")):
                assert connection.recv(100)
            if how == "half":
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            if how == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert served.client.get("/ready").status_code == 200


def test_nobody_is_left_at_work(served: Gateway) -> None:
    wait_for(lambda: served.client.get("/ready").json()["in_flight"] == 0, "nothing is in flight")


@AT_LENGTH
@given(
    st.sampled_from([*REFUSED.values(), *TAKEN.values(), post(), HIDDEN]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)), max_size=3),
)
def test_damaged_requests_never_make_more_than_they_are(
    served: Gateway, engine: RawEngine, sent: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    """Every request that reaches the engine is whole JSON with the model, and none is answered by a 5xx."""
    before = len(engine.requests)
    for at, gone, put in edits:
        sent = sent[:at] + put + sent[at + gone :]
    with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE_S) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        except (ConnectionResetError, BrokenPipeError):
            received = b""
    assert b"HTTP/1.1 5" not in received
    for request in engine.requests[before:]:
        assert json.loads(request.partition(b"\r\n\r\n")[2])["model"] == "m"


def test_two_thousand_rounds_leave_nothing_behind(served: Gateway) -> None:
    chance = random.Random(7)
    cases = [*REFUSED.values(), *SLOW[1:5]]

    def rounds(count: int) -> None:
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE_S) as connection:
                connection.sendall(chance.choice(cases))
                if chance.random() < 0.5:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    rounds(500)
    before = resident_mib(served)
    rounds(2000)
    assert served.client.get("/health").status_code == 200
    assert resident_mib(served) - before < 4
