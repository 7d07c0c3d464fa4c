"""What the gateway tells of engines on demand, and what it says where nobody would load them."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.observed import Demand
from sage_reconcile.model.routing import Route, RoutingTable
from sage_reconcile.observe.demand import read_demand, who_waits
from tests.gateway.world import FakeEngine, Gateway, backend, table, wait_for


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[int]:
    """The reading end of the bell of stack "s", as a watcher holds it."""
    path = tmp_path / "watch" / "s.bell"
    path.parent.mkdir()
    os.mkfifo(path)
    handle = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield handle
    os.close(handle)


def rings(bell: int) -> int:
    try:
        return len(os.read(bell, 4096))
    except BlockingIOError:
        return 0


def with_demand(served: RoutingTable, hold: float = 20.0) -> RoutingTable:
    routes = (replace(route, hold=hold, stack="s", on_demand="e") for route in served.routes)
    return replace(served, routes=tuple(routes))


def told(home: Path) -> Demand:
    (only,) = read_demand(Home(home)) or (Demand("s", "e"),)
    return only


@pytest.mark.parametrize("workers", [1, 2])
def test_who_is_held_is_told_and_served_once_there_is_an_engine(
    tmp_path: Path, bell: int, workers: int
) -> None:
    none = RoutingTable((Route("fake", "llm", (), hold=20.0, stack="s", on_demand="e"),))
    with (
        FakeEngine("--request-delay", "0.3") as engine,
        Gateway(tmp_path, "--workers", str(workers)) as gateway,
    ):
        gateway.write(codec.encode(none))
        wait_for(lambda: gateway.client.get("/v1/models").json()["data"], "the table is loaded")
        assert who_waits(Home(tmp_path)) == frozenset()
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(gateway.chat) for _ in range(4)]
            wait_for(lambda: told(tmp_path).waiting == 4, "all four are told")
            wait_for(lambda: rings(bell), "the bell rings")
            ((stack, name, since),) = who_waits(Home(tmp_path))
            assert (stack, name) == ("s", "e")
            gateway.write(codec.encode(with_demand(table({"fake": [backend(engine.url)]}))))
            wait_for(lambda: told(tmp_path).in_flight, "they are in flight")
            assert [answer.result().status_code for answer in answers] == [200] * 4
        wait_for(lambda: (told(tmp_path).in_flight, told(tmp_path).waiting) == (0, 0), "nobody is left")
        assert told(tmp_path).last > since
    assert read_demand(Home(tmp_path)) is None, "a gateway that has ended tells nothing"


def test_the_last_use_outlives_the_gateway(tmp_path: Path, bell: int) -> None:
    with FakeEngine() as engine:
        served = codec.encode(with_demand(table({"fake": [backend(engine.url)]})))
        with Gateway(tmp_path) as gateway:
            gateway.write(served)
            wait_for(lambda: gateway.chat().status_code == 200, "it serves")
            last = wait_for(lambda: told(tmp_path).last, "the use is told")
        with Gateway(tmp_path):
            assert wait_for(lambda: told(tmp_path).last, "it is known again") == pytest.approx(last, abs=2)
        assert len(list((tmp_path / "run" / "gateway" / "demand").glob("*.json"))) == 1


def test_routes_that_are_not_on_demand_are_nobodys_business(tmp_path: Path) -> None:
    with FakeEngine() as engine, Gateway(tmp_path) as gateway:
        gateway.serve({"fake": [backend(engine.url)]})
        assert gateway.chat().status_code == 200
        assert not (tmp_path / "run" / "gateway" / "demand").exists()


def test_where_nobody_listens_the_answer_says_so(tmp_path: Path) -> None:
    """Also where the pipe is left of a watcher that was killed; a hold that is shorter is not made longer."""
    (tmp_path / "watch").mkdir()
    os.mkfifo(tmp_path / "watch" / "s.bell")
    with Gateway(tmp_path) as gateway:
        gateway.write(
            codec.encode(RoutingTable((Route("fake", "llm", (), hold=60.0, stack="s", on_demand="e"),)))
        )
        wait_for(lambda: gateway.client.get("/v1/models").json()["data"], "the table is loaded")
        reply = gateway.chat()
        assert reply.status_code == 503
        error = reply.json()["error"]
        assert error["code"] == "not_reconciled"
        assert "nobody reconciles its stack 's': run `sage watch FILE`" in error["message"]


def test_a_crowd_is_told_of_by_few_files(tmp_path: Path, bell: int) -> None:
    """Forty requests at once, and a bell that rings a few times."""
    none = RoutingTable((Route("fake", "llm", (), hold=20.0, stack="s", on_demand="e"),))
    with FakeEngine() as engine, Gateway(tmp_path) as gateway:
        gateway.write(codec.encode(none))
        wait_for(lambda: gateway.client.get("/v1/models").json()["data"], "the table is loaded")
        with ThreadPoolExecutor(40) as pool:
            answers = [pool.submit(gateway.chat) for _ in range(40)]
            wait_for(lambda: gateway.client.get("/ready").json()["held"] == 40, "all are held")
            assert 0 < rings(bell) < 40
            gateway.write(codec.encode(with_demand(table({"fake": [backend(engine.url)]}))))
            assert {answer.result().status_code for answer in answers} == {200}
