"""A client that reads slowly slows its engine down: what it does not take does not pile up in the gateway."""

import itertools
import socket
import threading
from contextlib import ExitStack

import psutil

from sage_reconcile.gatewayd.processes import family
from tests.gateway.wire import Asked, RawClient, RawEngine, post, saying, whole
from tests.gateway.world import DEADLINE_S, Gateway, backend, wait_for

MIB = 1 << 20
OFFERED = 200 * MIB
# Many times what sockets hold and a worker's memory varies by, and a small part of what the engine has.
BOUND = OFFERED // 2
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"data: " + b"x" * (64 << 10) + b"\n\n"
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Offer:
    """Answers with OFFERED bytes of events: `sent` are those that were taken, `is_stuck` while none are."""

    def __init__(self) -> None:
        self.sent = 0
        self.is_stuck = threading.Event()

    def __call__(self, _: Asked, connection: socket.socket) -> bool:
        connection.sendall(HEAD)
        connection.settimeout(1)
        for piece in itertools.repeat(CHUNK, OFFERED // len(EVENT)):
            self._send(connection, piece)
        connection.settimeout(DEADLINE_S)
        connection.sendall(b"0\r\n\r\n")
        return True

    def _send(self, connection: socket.socket, piece: bytes) -> None:
        while piece:
            try:
                count = connection.send(piece)
            except TimeoutError:
                self.is_stuck.set()
            else:
                self.is_stuck.clear()
                self.sent += count
                piece = piece[count:]


def worker_of(gateway: Gateway) -> psutil.Process:
    [worker] = family(gateway.process.pid)[1:]
    return worker


def test_what_nobody_reads_is_not_kept(gateway: Gateway, stack: ExitStack) -> None:
    offer = Offer()
    engine = stack.enter_context(RawEngine(offer))
    gateway.serve({"m": [backend(engine.url, model="m")]})
    before = worker_of(gateway).memory_info().rss
    client = stack.enter_context(RawClient(gateway.port))
    client.send(post())
    wait_for(offer.is_stuck.is_set, "the engine is paused")
    assert offer.sent < BOUND
    assert worker_of(gateway).memory_info().rss - before < BOUND
    assert len(client.reply().body) == OFFERED // len(EVENT) * len(EVENT)
    assert worker_of(gateway).memory_info().rss - before < BOUND


def test_a_pipeline_that_nobody_reads_is_not_gone_on_with(gateway: Gateway, stack: ExitStack) -> None:
    count, size = 800, 200_000
    engine = stack.enter_context(RawEngine(saying(whole(b"x" * size))))
    gateway.serve({"m": [backend(engine.url, model="m")]})
    before = worker_of(gateway).memory_info().rss
    client = stack.enter_context(RawClient(gateway.port))
    client.send(post() * count)
    seen = [-1] * 25

    def is_at_rest() -> bool:
        seen[:] = [*seen[1:], len(engine.asked)]
        return len(set(seen)) == 1

    wait_for(is_at_rest, "nothing more is asked for")
    assert 0 < len(engine.asked) < count // 2
    assert worker_of(gateway).memory_info().rss - before < count * size // 4
    assert [len(client.reply().body) for _ in range(count)] == [size] * count


def test_a_connection_that_was_paused_goes_on(gateway: Gateway, stack: ExitStack) -> None:
    """Replies of all sizes, so that some end while the engine is paused: its connection serves the next."""

    def answer(asked: Asked, connection: socket.socket) -> bool:
        connection.sendall(whole(b"x" * (3 * MIB + asked.number * 150_000)))
        return True

    engine = stack.enter_context(RawEngine(answer))
    gateway.serve({"m": [backend(engine.url, model="m")]})
    slow, quick = (stack.enter_context(RawClient(gateway.port)) for _ in range(2))
    for _ in range(40):
        slow.send(post())
        quick.send(post())
        assert quick.reply().status == slow.reply().status == 200
