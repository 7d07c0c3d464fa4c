"""More is asked than engines take at once: who waits, who is turned away, who is next."""

import http.client
import json
import socket
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage_reconcile.gatewayd.processes import family
from sage_reconcile.model import codec
from sage_reconcile.model.routing import Route, RoutingTable
from tests.gateway.hammer import Hammer
from tests.gateway.test_master import clients_of
from tests.gateway.wire import Asked, Message, RawClient, RawEngine, post, whole
from tests.gateway.world import DEADLINE_S, FakeEngine, Gateway, backend, wait_for

CLOCK = "clock"


def publish(gateway: Gateway, url: str, state: str = "ready", limit: int = 1, **route: object) -> None:
    """A table in which one engine serves `m`. Another model has no engine: to ask it takes `hold` seconds."""
    one = backend(url, state=state, model="m", max_concurrent=limit)
    given = {"hold": 60.0, **route}
    made = Route("m", "llm", (one.id,), **given)  # type: ignore[arg-type]
    clock = Route(CLOCK, "llm", (), hold=1.2)
    digest = gateway.write(codec.encode(RoutingTable((clock, made), (one,))))
    wait_for(lambda: gateway.table()["digest"] == digest, "the gateway serves by the table")


class Gated:
    """An engine's answer that waits for `go_on`."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, asked: Asked, connection: socket.socket) -> bool:
        self.go_on.wait(DEADLINE_S)
        connection.sendall(whole(asked.message.body))
        return True


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
def engine(gated: Gated, stack: ExitStack) -> RawEngine:
    return stack.enter_context(RawEngine(gated))


def queued(gateway: Gateway) -> int:
    """How many wait in the line of `m`."""
    text = gateway.client.get("/metrics").text
    return int(float(text.split('sage_gateway_queued{model="m"} ')[1].split()[0]))


def code_of(reply: Message) -> tuple[int, str]:
    assert int(reply.headers[b"retry-after"]) >= 1
    error = json.loads(reply.body)["error"]
    assert error["src"] == "sage"
    return reply.status, error["code"]


class Asking:
    """Connections that each have asked for `m`, in this order."""

    def __init__(self, gateway: Gateway, stack: ExitStack, engine: RawEngine) -> None:
        self._gateway = gateway
        self._stack = stack
        self._engine = engine

    def ask(self, more: bytes = b"") -> RawClient:
        client = self._stack.enter_context(RawClient(self._gateway.port))
        client.send(post(more=more))
        return client

    def first(self) -> RawClient:
        """The one that is at the engine."""
        client = self.ask()
        wait_for(lambda: self._engine.at_once, "it is at the engine")
        return client

    def waiting(self, more: bytes = b"") -> RawClient:
        before = queued(self._gateway)
        client = self.ask(more)
        wait_for(lambda: queued(self._gateway) == before + 1, "it waits")
        return client


@pytest.fixture
def asking(gateway: Gateway, stack: ExitStack, engine: RawEngine) -> Asking:
    return Asking(gateway, stack, engine)


def test_never_more_at_once_than_an_engine_takes(gateway: Gateway, stack: ExitStack, gated: Gated) -> None:
    engines = [stack.enter_context(RawEngine(gated)) for _ in range(2)]
    limits = 1, 3
    pairs = enumerate(zip(engines, limits, strict=True))
    gateway.serve({"fake": [backend(one.url, f"e#{at}", max_concurrent=limit) for at, (one, limit) in pairs]})
    opening = threading.Thread(
        target=lambda: (
            wait_for(lambda: [one.at_once for one in engines] == [1, 3], "both are full")
            and gated.go_on.set()
        )
    )
    opening.start()
    with Hammer(gateway.port, threads=12) as hammer:
        hammer.goes_on()
    opening.join()
    assert hammer.failures == [[]] * 12
    assert [one.most for one in engines] == [1, 3]


def test_a_full_line_turns_away(gateway: Gateway, engine: RawEngine, gated: Gated, asking: Asking) -> None:
    publish(gateway, engine.url, queue_size=2)
    clients = [asking.first(), asking.waiting(), asking.waiting()]
    refused = asking.ask()
    assert code_of(refused.reply()) == (429, "queue_full")
    gated.go_on.set()
    assert [client.reply().status for client in clients] == [200] * 3
    refused.send(post())
    assert refused.reply().status == 200


def test_a_wait_that_takes_too_long(gateway: Gateway, engine: RawEngine, asking: Asking) -> None:
    publish(gateway, engine.url, queue_timeout=0.2)
    asking.first()
    assert code_of(asking.ask().reply()) == (429, "queue_timeout")
    assert queued(gateway) == 0


def test_a_deadline_that_passes(gateway: Gateway, engine: RawEngine, asking: Asking) -> None:
    publish(gateway, engine.url)
    asking.first()
    assert code_of(asking.ask(b"x-slo-deadline-ms: 100\r\n").reply()) == (429, "deadline_passed")
    assert queued(gateway) == 0


def test_a_deadline_that_passes_while_no_engine_is_ready(
    gateway: Gateway, engine: RawEngine, asking: Asking
) -> None:
    publish(gateway, engine.url, state="pending")
    assert code_of(asking.ask(b"x-slo-deadline-ms: 100\r\n").reply()) == (429, "deadline_passed")


def test_who_leaves_gives_up_its_place(
    gateway: Gateway, engine: RawEngine, gated: Gated, asking: Asking
) -> None:
    publish(gateway, engine.url, queue_size=1)
    first, leaving = asking.first(), asking.waiting()
    leaving.socket.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: queued(gateway) == 0, "it has left")
    last = asking.waiting()
    gated.go_on.set()
    assert [first.reply().status, last.reply().status] == [200, 200]
    assert len(engine.asked) == 2


def test_the_urgent_one_goes_first(gateway: Gateway, engine: RawEngine, gated: Gated, asking: Asking) -> None:
    publish(gateway, engine.url, queue_policy="priority")
    for at, word in enumerate([b"", b"LOW", b"NORMAL", b"HIGH"]):
        head = b"x-request-priority: %b\r\nx-at: %d\r\n" % (word, at)
        asking.waiting(head) if at else asking.first()
    gated.go_on.set()
    wait_for(lambda: len(engine.asked) == 4, "all are answered")
    assert [asked.headers.get(b"x-at") for asked in engine.asked] == [None, b"3", b"2", b"1"]


def test_to_be_held_is_not_to_wait_in_the_line(gateway: Gateway, stack: ExitStack) -> None:
    """An engine takes longer to load than anybody may wait in the line; who was held is not turned away."""
    engine = stack.enter_context(FakeEngine("--request-delay", "0.2", model="m"))
    publish(gateway, engine.url, state="pending", queue_timeout=1.0)
    clients = [stack.enter_context(RawClient(gateway.port)) for _ in range(4)]
    for client in clients:
        client.send(post())
    assert gateway.chat(CLOCK).status_code == 503
    publish(gateway, engine.url, queue_timeout=1.0)
    assert [client.reply().status for client in clients] == [200] * 4


class Crowd:
    """Clients that ask without a pause, half of them with HIGH and half with LOW priority."""

    def __init__(self, port: int, answers: int) -> None:
        self._port = port
        self._left = answers
        self._lock = threading.Lock()
        self.answered: Counter[str] = Counter()

    def ratio(self) -> float:
        """How many HIGH ones were answered for each LOW one: the inverse of the ratio of their mean waits, as
        there are as many of both all the time."""
        threads = [threading.Thread(target=self._ask, args=(word,)) for word in ["HIGH", "LOW"] * 6]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert self.answered["other"] == 0
        return self.answered["HIGH"] / max(1, self.answered["LOW"])

    def _ask(self, word: str) -> None:
        while True:
            # A connection for each, so that all workers have both kinds.
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=DEADLINE_S)
            connection.request("POST", "/v1/completions", b'{"model":"m"}', {"x-request-priority": word})
            status = connection.getresponse().status
            connection.close()
            with self._lock:
                self._left -= 1
                if self._left < 0:
                    return
                self.answered[word if status == 200 else "other"] += 1


def policies(gateway: Gateway) -> set[str]:
    """What the workers say they go by."""
    told = set()
    with clients_of(gateway.port, {process.pid for process in family(gateway.process.pid)[1:]}) as clients:
        for client in clients.values():
            client.connection.request("GET", "/admin/metrics")
            told.add(str(json.loads(client.connection.getresponse().read())["policy"]))
    return told


def test_the_policy_acts_and_is_switched_while_it_acts(stack: ExitStack, tmp_path: Path) -> None:
    engine = stack.enter_context(FakeEngine("--request-delay", "0.02", model="m"))
    gateway = stack.enter_context(Gateway(tmp_path / "home", "--workers", "2"))
    publish(gateway, engine.url, limit=2)

    def switch(policy: str) -> None:
        reply = gateway.client.post("/admin/set_policy", json={"policy": policy})
        assert (reply.status_code, reply.json()["policy"]) == (200, policy)
        wait_for(lambda: policies(gateway) == {policy}, "both workers go by it")

    assert policies(gateway) == {"stack"}
    assert 0.4 < Crowd(gateway.port, 120).ratio() < 2.5
    switch("priority")
    assert Crowd(gateway.port, 120).ratio() > 4
    publish(gateway, engine.url, limit=2, hold=61.0)
    assert policies(gateway) == {"priority"}
    assert Crowd(gateway.port, 120).ratio() > 4
    switch("stack")
    assert 0.4 < Crowd(gateway.port, 120).ratio() < 2.5


def test_a_policy_that_there_is_not(gateway: Gateway) -> None:
    for body in ({"policy": "luck"}, {"policy": 1}, {}, {"policy": "fifo", "more": 1}):
        reply = gateway.client.post("/admin/set_policy", json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["type"], error["src"]) == (400, "invalid_request_error", "sage")
