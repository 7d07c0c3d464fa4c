"""No client sees that engines are killed, hang, lie or come and go, nor that the gateway itself is replaced.

Counted from outside, under clients that ask without a pause, half of them for streams.
"""

import json
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage_reconcile import gatewayd
from sage_reconcile.gatewayd import GatewayOptions
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.routing import Backend, Route, RoutingTable
from tests.gateway.hammer import Hammer
from tests.gateway.wire import Asked, Cut, RawClient, RawEngine, post, saying, whole
from tests.gateway.world import (
    DEADLINE_S,
    REPOSITORY,
    FakeEngine,
    Gateway,
    Process,
    backend,
    digest_of,
    free_port,
    table,
    wait_for,
)
from tests.processes import is_alive

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"data: {}\n\n"
DONE = b"data: [DONE]\n\n"
UNABLE = whole(b'{"error": "no"}', b"503 Service Unavailable")


def chunks(*events: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


def answer_well(asked: Asked, connection: socket.socket) -> bool:
    """As an engine does that works, whole or as a stream."""
    is_stream = b'"stream": true' in asked.message.body
    connection.sendall(CHUNKED + chunks(EVENT, DONE) + b"0\r\n\r\n" if is_stream else whole())
    return True


class Impatient(Gateway):
    """A gateway of one worker, by impatient_worker.py; the test is its parent."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with ExitStack() as opened:
            ours, theirs = map(opened.enter_context, socket.socketpair())
            listening = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=256))
            self.port = int(listening.getsockname()[1])
            numbers = listening.fileno(), theirs.fileno()
            place = ["--listen", str(numbers[0]), str(numbers[1])]
            worker = str(REPOSITORY / "tests" / "gateway" / "impatient_worker.py")
            environ = {"SAGE_GATEWAY": str(home), "PYTHONPATH": str(REPOSITORY)}
            Process.__init__(self, [sys.executable, worker, *place], environ, numbers)
            self._channel = socket.socket(fileno=ours.detach())
        self._connect()

    def end(self) -> None:
        super().end()
        self._channel.close()


@pytest.fixture
def impatient(tmp_path: Path, stack: ExitStack) -> Impatient:
    return stack.enter_context(Impatient(tmp_path / "home"))


def serve(gateway: Gateway, *engines: RawEngine | FakeEngine, **route: object) -> list[Backend]:
    """Publishes a table in which these engines share the model `fake`."""
    backends = [backend(one.url, f"e#{at}") for at, one in enumerate(engines)]
    ids = tuple(one.id for one in backends)
    made = Route("fake", "llm", ids, **{"hold": 60.0, **route})  # type: ignore[arg-type]
    digest = gateway.write(codec.encode(RoutingTable((made,), tuple(backends))))
    wait_for(lambda: gateway.table()["digest"] == digest, "the gateway serves by the table")
    return backends


def number(gateway: Gateway, name: str, replica: int) -> int:
    """A number of a backend as GET /metrics tells it, summed over its other labels."""
    lines = gateway.client.get("/metrics").text.splitlines()
    wanted = [line for line in lines if line.startswith(name + "{") and f'replica="{replica}"' in line]
    return sum(int(float(line.split()[-1])) for line in wanted)


def test_a_killed_replica_costs_at_most_streams_that_had_begun(gateway: Gateway, stack: ExitStack) -> None:
    options = ("--request-delay", "0.01", "--chunk-delay", "0.005")
    engines = [stack.enter_context(FakeEngine(*options)) for _ in range(2)]
    serve(gateway, *engines)
    with Hammer(gateway.port, threads=8, has_streams=True) as hammer:
        engines[0].process.kill()
        hammer.goes_on()
        hammer.goes_on()
    assert hammer.failures == [[]] * 8
    assert len(hammer.broken) <= 4


def test_a_killed_replica_under_load_that_is_not_streamed(gateway: Gateway, stack: ExitStack) -> None:
    engines = [stack.enter_context(FakeEngine("--request-delay", "0.02")) for _ in range(2)]
    serve(gateway, *engines)
    with Hammer(gateway.port, threads=8) as hammer:
        engines[0].process.kill()
        hammer.goes_on()
    assert hammer.failures == [[]] * 8


@pytest.mark.parametrize("workers", [1, 2])
def test_a_restart_under_streams(home: Home, stack: ExitStack, workers: int) -> None:
    engine = stack.enter_context(FakeEngine("--chunk-delay", "0.02"))
    home.routing_file.parent.mkdir(parents=True)
    home.routing_file.write_bytes(codec.encode(table({"fake": [backend(engine.url)]})))
    before = gatewayd.start(home, GatewayOptions(port=free_port(), workers=workers))
    with Hammer(before.options.port, threads=4, has_streams=True) as hammer:
        gatewayd.restart(home)
        hammer.goes_on()
        wait_for(lambda: not is_alive(before.pid), "the old one has ended")
    assert hammer.failures == [[]] * 4
    assert hammer.broken == []


def test_a_hung_replica_is_passed_over(impatient: Impatient, stack: ExitStack) -> None:
    """Nothing of it fails, and what waits for it is asked elsewhere; once it goes on, it is asked again."""
    engines = [stack.enter_context(FakeEngine("--chunk-delay", "0.002")) for _ in range(2)]
    serve(impatient, *engines)
    hung = engines[0].process
    replies = "sage_gateway_backend_requests_total"
    with Hammer(impatient.port, threads=6) as hammer:
        os.kill(hung.pid, signal.SIGSTOP)
        wait_for(lambda: number(impatient, "sage_gateway_backend_ejected", 0), "it is found")
        hammer.goes_on()
        before = number(impatient, replies, 0)
        hammer.goes_on()
        assert number(impatient, replies, 0) == before
        os.kill(hung.pid, signal.SIGCONT)
        wait_for(lambda: number(impatient, replies, 0) > before, "it is asked again")
        hammer.goes_on()
    assert hammer.failures == [[]] * 6


def test_a_new_table_does_not_make_a_hung_replica_a_good_one(impatient: Impatient, stack: ExitStack) -> None:
    engines = [stack.enter_context(FakeEngine()) for _ in range(2)]
    serve(impatient, *engines)
    os.kill(engines[0].process.pid, signal.SIGSTOP)
    stack.callback(os.kill, engines[0].process.pid, signal.SIGCONT)
    with Hammer(impatient.port, threads=2) as hammer:
        wait_for(lambda: number(impatient, "sage_gateway_backend_ejected", 0), "it is found")
    serve(impatient, *engines, hold=61.0)
    assert number(impatient, "sage_gateway_backend_ejected", 0) == 1
    assert hammer.failures == [[]] * 2


@pytest.mark.parametrize("status", [b"502 Bad Gateway", b"503 Service Unavailable", b"504 Gateway Timeout"])
def test_a_replica_that_is_not_able_is_passed_over(
    impatient: Impatient, stack: ExitStack, status: bytes
) -> None:
    """It is asked three times, then once after each pause; once it is able, it gets its share again."""
    unable = stack.enter_context(RawEngine(saying(whole(status=status))))
    well = stack.enter_context(RawEngine(answer_well))
    serve(impatient, unable, well)
    with Hammer(impatient.port, threads=4, has_streams=True) as hammer:
        wait_for(lambda: len(well.asked) >= 400, "many requests")
        ejections = number(impatient, "sage_gateway_backend_ejections_total", 0)
        asked = len(unable.asked)
        # At the start every thread may have been sent there before the third reply was in.
        assert asked <= 4 + 3 + ejections
        unable.answer = answer_well
        wait_for(lambda: len(unable.asked) > asked + 100, "it is asked as often as the other one")
    assert hammer.failures == [[]] * 4
    assert hammer.broken == []


def test_the_unable_beside_the_busy(gateway: Gateway, stack: ExitStack) -> None:
    """Whoever cannot be answered here waits for a place there."""
    go_on = threading.Event()

    def answer(asked: Asked, connection: socket.socket) -> bool:
        go_on.wait(DEADLINE_S)
        return answer_well(asked, connection)

    unable, busy = (stack.enter_context(RawEngine(how)) for how in (saying(UNABLE), answer))
    ids = [backend(one.url, f"e#{at}", max_concurrent=1) for at, one in enumerate((unable, busy))]
    gateway.serve({"fake": ids})
    clients = [stack.enter_context(RawClient(gateway.port)) for _ in range(4)]
    for client in clients:
        client.send(post(b'{"model":"fake"}'))
    wait_for(lambda: gateway.client.get("/admin/metrics").json() and unable.asked, "it was asked")
    go_on.set()
    assert [client.reply().status for client in clients] == [200] * 4
    assert busy.most == 1


def test_a_replica_that_refuses_connections_is_passed_over(impatient: Impatient, stack: ExitStack) -> None:
    well = stack.enter_context(RawEngine(answer_well))
    gone = RawEngine(answer_well)
    gone.close()
    serve(impatient, gone, well)
    with Hammer(impatient.port, threads=4, has_streams=True) as hammer:
        wait_for(lambda: len(well.asked) >= 400, "many requests")
        failures = number(impatient, "sage_gateway_backend_failures_total", 0)
        assert failures <= 4 + 3 + number(impatient, "sage_gateway_backend_ejections_total", 0)
        back = stack.enter_context(RawEngine(answer_well, gone.port))
        wait_for(lambda: len(back.asked) > 100, "it is asked again")
    assert hammer.failures == [[]] * 4
    assert hammer.broken == []


def never(_: Asked, connection: socket.socket) -> bool:
    """Answers nothing until the gateway leaves."""
    return connection.recv(1) != b""


def stopping(asked: Asked, connection: socket.socket) -> bool:
    """A stream that stops after one event, in the client's way of ending lines."""
    end = b"\r\n" if b"x-crlf" in asked.message.headers else b"\n"
    connection.sendall(CHUNKED + chunks(EVENT.replace(b"\n", end)))
    return connection.recv(1) != b""


def test_a_reply_that_does_not_begin(impatient: Impatient, stack: ExitStack) -> None:
    slow = stack.enter_context(RawEngine(never))
    serve(impatient, slow, first_byte_timeout=0.2)
    reply = impatient.chat()
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "engine_timeout")
    wait_for(lambda: not slow.at_once, "the engine's work has ended")
    well = stack.enter_context(RawEngine(answer_well))
    serve(impatient, slow, well, first_byte_timeout=0.2)
    assert [impatient.chat().status_code for _ in range(4)] == [200] * 4
    assert len(slow.asked) > 1


def test_a_stream_that_stops(impatient: Impatient, stack: ExitStack) -> None:
    """Its end is told, and the connection serves the next request."""
    engine = stack.enter_context(RawEngine(stopping))
    serve(impatient, engine, idle_timeout=0.2)
    client = stack.enter_context(RawClient(impatient.port))
    for more, end in ((b"", b"\n"), (b"", b"\n"), (b"x-crlf: 1\r\n", b"\r\n")):
        client.send(post(b'{"model":"fake","stream":true}', more=more))
        events = client.reply().body.split(end * 2, 1)
        assert events[0] + b"\n\n" == EVENT
        assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "engine_lost"
    wait_for(lambda: not engine.at_once, "the engine's work has ended")


def test_half_an_event_is_never_completed(impatient: Impatient, stack: ExitStack) -> None:
    """A stream that stops within an event ends with its connection."""

    def answer(_: Asked, connection: socket.socket) -> bool:
        connection.sendall(CHUNKED + chunks(b"data: {"))
        return connection.recv(1) != b""

    serve(impatient, stack.enter_context(RawEngine(answer)), idle_timeout=0.2)
    client = stack.enter_context(RawClient(impatient.port))
    client.send(post(b'{"model":"fake"}'))
    with pytest.raises(Cut) as cut:
        client.reply()
    assert cut.value.got == b"data: {"


def test_a_slow_client_is_not_taken_for_a_slow_engine(impatient: Impatient, stack: ExitStack) -> None:
    """It reads nothing for longer than idle_timeout; another stream is ended meanwhile."""
    size = 64 << 20
    engine = stack.enter_context(RawEngine(saying(whole(b"x" * size))))
    stopped = stack.enter_context(RawEngine(stopping))
    slow, other = backend(engine.url, "slow#0", model="m"), backend(stopped.url, "stopped#0", model="n")
    routes = [Route(one.model, "llm", (one.id,), idle_timeout=0.3) for one in (slow, other)]
    digest = impatient.write(codec.encode(RoutingTable(tuple(routes), (slow, other))))
    wait_for(lambda: impatient.table()["digest"] == digest, "the gateway serves by the table")
    clients = [stack.enter_context(RawClient(impatient.port)) for _ in range(2)]
    clients[0].send(post())
    wait_for(lambda: engine.asked, "the engine is asked")
    for _ in range(2):
        clients[1].send(post(b'{"model":"n"}'))
        assert b"engine_lost" in clients[1].reply().body
    assert len(clients[0].reply().body) == size


def test_a_single_replica_that_is_replaced(gateway: Gateway, stack: ExitStack) -> None:
    """Draining, then gone, then another one that is not ready yet: requests are held, and streams finish."""
    old = stack.enter_context(FakeEngine("--chunk-delay", "0.01"))
    gateway.serve({"fake": [backend(old.url, "e#0")]}, hold=60)
    with Hammer(gateway.port, threads=8, has_streams=True) as hammer:
        leaving = backend(old.url, "e#0", state="draining")
        digest = gateway.write(codec.encode(table({"fake": [leaving]}, hold=60)))
        drained = gatewayd.in_flight
        wait_for(lambda: drained(Home(gateway.home), leaving.id, digest) == 0, "it is drained")
        assert digest == digest_of((gateway.home / "routing" / "routing.json").read_bytes())
        old.process.kill()
        wait_for(lambda: gateway.client.get("/ready").json()["held"] == 8, "everybody is held")
        new = stack.enter_context(FakeEngine())
        gateway.serve({"fake": [backend(new.url, "f#0", state="pending")]}, hold=60)
        gateway.serve({"fake": [backend(new.url, "f#0")]}, hold=60)
        hammer.goes_on()
    assert hammer.failures == [[]] * 8
    assert hammer.broken == []
