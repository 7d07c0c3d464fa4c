"""What the caller sees while engines and gateways come and go: nothing, as long as anything can answer."""

import asyncio
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage_reconcile.client import (
    EngineError,
    NoBackendError,
    RequestRejectedError,
    UnifiedInferenceClient,
    UnknownModelError,
    attempts,
    backends,
    discovery,
)
from sage_reconcile.model.desired import Kind
from tests.client.conftest import Machine
from tests.client.world import ListingEngine, Service
from tests.gateway.world import REPOSITORY, FakeEngine, RecordingEngine, Script, wait_for
from tests.processes import free_port

create = UnifiedInferenceClient.create


def start(stack: ExitStack, port: int, *options: str, model: str = "fake") -> FakeEngine:
    return stack.enter_context(FakeEngine(*options, port=port, model=model))


def start_all(stack: ExitStack, ports: range, *options: str) -> list[FakeEngine]:
    """One engine on each port, all starting at once."""
    engines = [FakeEngine(*options, port=port) for port in ports]
    for engine in engines:
        stack.push(engine)
    return [engine.__enter__() for engine in engines]


def test_replicas_share_the_requests(stack: ExitStack, machine: Machine) -> None:
    both = [start(stack, port, "--answer", str(port)) for port in machine.llm_ports[:2]]
    with create() as made:
        assert {made.chat("hi") for _ in range(4)} == {str(one.port) for one in both}


def test_a_dead_engine_is_gone_around(stack: ExitStack, machine: Machine) -> None:
    first, second = (start(stack, port, "--answer", str(port)) for port in machine.llm_ports[:2])
    with create() as made:
        assert len({made.chat("hi") for _ in range(2)}) == 2
        first.end()
        assert {made.chat("hi") for _ in range(6)} == {str(second.port)}
        assert [known.url for known in made.backends] == [second.url]


def test_an_engine_that_dies_of_a_request_is_gone_around(stack: ExitStack, machine: Machine) -> None:
    start(stack, machine.llm_ports[0], "--die-on-request")
    start(stack, machine.llm_ports[1], "--answer", "alive")
    with create() as made:
        assert [made.chat("hi") for _ in range(3)] == ["alive"] * 3
        assert len(made.backends) == 1


def test_a_request_that_kills_engines_does_not_kill_all(stack: ExitStack, machine: Machine) -> None:
    engines = start_all(stack, machine.llm_ports, "--die-on-request")
    with create() as made, pytest.raises(EngineError, match="closed the connection before it answered"):
        made.chat("hi")
    left = len(engines) - attempts.MAX_SENDS
    wait_for(lambda: sum(one.process.poll() is None for one in engines) == left, "three have died, one lives")


def test_a_failing_engine_is_gone_around(stack: ExitStack, machine: Machine) -> None:
    start(stack, machine.llm_ports[0], "--error-status", "500")
    start(stack, machine.llm_ports[1], "--answer", "works")
    with create() as made:
        assert [made.chat("hi") for _ in range(4)] == ["works"] * 4


def test_where_all_fail_the_error_is_the_engines(stack: ExitStack, machine: Machine) -> None:
    start_all(stack, machine.llm_ports[:2], "--error-status", "500")
    with create() as made, pytest.raises(EngineError, match=r"answered 500 .*engine says no"):
        made.chat("hi")


def test_an_engine_at_another_port_is_found_again(stack: ExitStack, machine: Machine) -> None:
    old = start(stack, machine.llm_ports[0], "--answer", "old")
    with create() as made:
        assert made.chat("hi") == "old"
        old.end()
        start(stack, machine.llm_ports[2], "--answer", "new")
        assert made.chat("hi") == "new"


def test_a_gateway_comes_and_goes(
    stack: ExitStack, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(stack, machine.llm_ports[0])
    with create() as made:
        gateway = stack.enter_context(Service(tmp_path, machine.gateway_port))
        gateway.publish([("fake", "llm", engine.url, "ready")])
        assert made.chat("hi")
        assert [known.is_gateway for known in made.backends] == [False], "looked for again too early"
        monkeypatch.setattr(backends, "REFRESH_S", 0.0)
        assert made.chat("hi")
        assert [known.is_gateway for known in made.backends] == [True]
        gateway.end()
        assert made.chat("hi")
        assert [known.url for known in made.backends] == [engine.url]


def test_an_engine_that_is_only_slow_is_not_taken_for_gone(
    stack: ExitStack, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = tmp_path / "hang"
    engine = start(stack, machine.llm_ports[0], "--hang-file", str(hang))
    with create() as made:
        monkeypatch.setattr(discovery, "ANSWER_TIMEOUT_S", 0.3)
        hang.touch()
        made._channel.backends.refresh()
        assert [known.url for known in made.backends] == [engine.url]
        with pytest.raises(NoBackendError, match=rf"port {engine.port}: /v1/models no answer in time"):
            create()
        hang.unlink()
        assert made.chat("hi")


def test_requests_go_on_while_one_looks_again(
    stack: ExitStack, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(stack, machine.llm_ports[0])
    with create() as made:
        assert made.chat("hi")
        monkeypatch.setattr(backends, "REFRESH_S", 0.0)
        with made._channel.backends._looking:
            assert made.chat("hi")


@pytest.mark.parametrize("is_given", [True, False])
def test_a_restart_is_waited_for(stack: ExitStack, machine: Machine, is_given: bool) -> None:
    port = machine.llm_ports[0]
    old = start(stack, port)
    with create(old.url if is_given else None) as made, ThreadPoolExecutor(1) as pool:
        assert made.chat("hi")
        old.end()
        answer = pool.submit(made.chat, "hi")
        start(stack, port, "--answer", "after the restart")
        assert answer.result() == "after the restart"


def test_what_stays_away_is_told(stack: ExitStack, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "WAITS_S", (0.01, 0.01))
    engine = start(stack, machine.llm_ports[0])
    with create() as found, create(engine.url) as given:
        assert found.chat("hi") == given.chat("hi")
        engine.end()
        with pytest.raises(NoBackendError, match="no inference backend found"):
            found.chat("hi")
        with pytest.raises(NoBackendError, match="cannot be reached"):
            given.chat("hi")


def test_nobody_notices_a_lost_replica(stack: ExitStack, machine: Machine) -> None:
    engines = start_all(stack, machine.llm_ports[:3], "--request-delay", "0.02")
    answered = threading.Semaphore(0)

    def ask(made: UnifiedInferenceClient) -> str:
        try:
            return made.chat("hi")
        finally:
            answered.release()

    with create() as made, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, made) for _ in range(80)]
        for _ in range(20):
            answered.acquire()
        engines[0].process.kill()
        for _ in range(20):
            answered.acquire()
        engines[1].process.kill()
        assert len([one.result() for one in asked]) == 80


def test_nobody_notices_a_lost_replica_asynchronously(stack: ExitStack, machine: Machine) -> None:
    engines = start_all(stack, machine.llm_ports[:2], "--request-delay", "0.02")

    async def ask() -> None:
        async with create() as made:
            assert await asyncio.gather(*(made.achat("hi") for _ in range(4)))
            asked = [asyncio.create_task(made.achat("hi")) for _ in range(24)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            engines[0].process.kill()
            assert len(await asyncio.gather(*asked)) == 24

    asyncio.run(ask())


def test_a_stream_that_breaks_before_its_first_piece_is_asked_for_again(
    stack: ExitStack, machine: Machine
) -> None:
    start(stack, machine.llm_ports[0], "--die-after-events", "0")
    start(stack, machine.llm_ports[1], "--answer", "from another")
    with create() as made:
        assert [list(made.chat("hi", stream=True)) for _ in range(2)] == [["from ", "another "]] * 2


def test_a_stream_that_breaks_later_is_told_after_its_pieces(stack: ExitStack, machine: Machine) -> None:
    engine = start(stack, machine.llm_ports[0], "--die-after-events", "2")
    start(stack, machine.llm_ports[1])
    with create(engine.url) as made:
        pieces = made.chat("hi", stream=True)
        assert [next(pieces), next(pieces)] == ["The ", "capital "]
        with pytest.raises(EngineError, match=rf"{engine.url} .*'fake'"):
            next(pieces)
        assert list(pieces) == []


def test_a_stream_that_breaks_behind_the_gateway_is_told(
    stack: ExitStack, service: Service, usual_after: None
) -> None:
    engine = start(stack, free_port(), "--die-after-events", "2")
    service.publish([("fake", "llm", engine.url, "ready")])

    async def ask() -> None:
        async with create(service.url) as made:
            pieces = await made.achat("hi", stream=True)
            assert [await anext(pieces), await anext(pieces)] == ["The ", "capital "]
            with pytest.raises(EngineError, match=r"The engine of 'fake' was lost while it was answering"):
                await anext(pieces)

    asyncio.run(ask())


def test_a_stream_that_breaks_behind_the_gateway_before_its_first_piece_is_asked_for_again(
    stack: ExitStack,
) -> None:
    lost = b'data: {"error": {"message": "lost", "code": "engine_lost"}}\n\n'
    gateway = stack.enter_context(RecordingEngine())
    gateway.script = Script(headers={"content-type": "text/event-stream"}, chunks=[lost])
    with create(gateway.url) as made, pytest.raises(EngineError, match="lost"):
        made.chat("hi", model="m", stream=True)
    assert len(gateway.requests) == attempts.MAX_SENDS


def test_a_chat_model_that_this_client_chose_is_chosen_anew(
    service: Service, usual_after: None, stack: ExitStack
) -> None:
    other = start(stack, free_port(), model="other")
    vectors = start(stack, free_port(), model="other-vectors")
    with create(service.url) as chosen, create(service.url, default_llm_model="fake") as given:
        assert chosen.chat("hi", return_result=True).model == "fake"
        before = chosen.embed("a")
        service.publish(
            [("other", "llm", other.url, "ready"), ("other-vectors", "embedding", vectors.url, "ready")]
        )
        assert chosen.chat("hi", return_result=True).model == "other"
        with pytest.raises(UnknownModelError, match="'fake' is not served"):
            given.chat("hi")
        # Vectors of another model could not be compared with those the caller has.
        with pytest.raises(UnknownModelError, match="'vec' is not served"):
            chosen.embed("a")
        service.serve_usual()
        assert chosen.embed("a") == before


def test_an_embedding_engine_of_another_model_is_no_replacement(stack: ExitStack, machine: Machine) -> None:
    engine = start(stack, machine.embedding_ports[0], model="vec")
    with create() as made:
        assert len(made.embed("a")) == 1
        engine.end()
        start(stack, machine.embedding_ports[1], model="other")
        with pytest.raises(
            UnknownModelError, match=r"the default embedding model 'vec' is not served .*other"
        ):
            made.embed("a")
        assert len(made.embed("a", model="other")) == 1


def test_an_engine_that_serves_another_model_by_now_is_asked_anew(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = stack.enter_context(ListingEngine())
    port = int(engine.url.rpartition(":")[2])
    monkeypatch.setattr(discovery, "RANGES", {Kind.LLM: range(port, port + 1)})
    engine.listed = b'{"data": [{"id": "old"}]}'
    with create() as made:
        engine.listed = b'{"data": [{"id": "new"}]}'
        engine.script = Script(404, chunks=[b'{"error": {"message": "no such model", "code": 404}}'])
        with pytest.raises(RequestRejectedError, match="answered 404 to a request for 'new'"):
            made.chat("hi")
        assert [json.loads(asked.body)["model"] for asked in engine.requests] == ["old", "new"]
        with pytest.raises(UnknownModelError, match=r"the model 'old' is not served .*: new"):
            made.chat("hi", model="old")


def test_the_package_itself_imports_the_standard_library_only() -> None:
    code = (
        "import sys, sage_reconcile\n"
        "print(sorted(n for n in {m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names\n"
        "             if not n.startswith('__')))\n"
        "from sage.llm import UnifiedInferenceClient as client\n"
        "print(client is sage_reconcile.UnifiedInferenceClient, 'openai' in sys.modules)\n"
    )
    command = [sys.executable, "-S", "-c", code]
    environ = {
        "PYTHONPATH": ":".join([str(REPOSITORY), *(path for path in sys.path if "site-packages" in path)])
    }
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["['sage_reconcile']", "True False"]
