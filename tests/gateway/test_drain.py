"""What the gateway tells whoever drains a backend."""

import json
import shutil
import threading
from pathlib import Path

import httpx
import pytest

from sage_reconcile import gatewayd
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from tests.gateway.world import Gateway, RecordingEngine, Script, backend, digest_of, table, wait_for

EVENT = b"data: {}\n\n"


def test_without_a_gateway(home_root: Path) -> None:
    assert gatewayd.in_flight(Home(home_root), "s/e#0@f:1", "0" * 12) is None


def test_a_record_of_a_dead_worker_counts_nothing(home_root: Path) -> None:
    folder = home_root / "run" / "gateway"
    folder.mkdir(parents=True)
    # The pid of this very process: alive, but without the mark.
    (folder / "1.json").write_text(json.dumps({"pid": 1, "digest": "x", "in_flight": {"b": 3}}))
    assert gatewayd.in_flight(Home(home_root), "b", "x") is None


@pytest.mark.parametrize("leaving", ["draining", "gone"])
def test_counts_until_the_last_request_has_ended(
    gateway: Gateway, recorder: RecordingEngine, leaving: str
) -> None:
    home = Home(gateway.home)
    recorder.script = Script(200, {"content-type": "text/event-stream"}, [EVENT, None, EVENT])
    old = backend(recorder.url, "old#0")
    ready = gateway.serve({"fake": [old]})
    assert gatewayd.in_flight(home, old.id, ready) == 0
    with gateway.client.stream("POST", "/v1/completions", json={"model": "fake"}) as reply:
        chunks = reply.iter_raw()
        next(chunks)
        draining = backend(recorder.url, "old#0", state="draining")
        routes = {"fake": [draining]} if leaving == "draining" else {"other": []}
        upcoming = digest_of(codec.encode(table(routes)))
        assert gatewayd.in_flight(home, old.id, upcoming) == 1, "a table not loaded yet is not drained yet"
        digest = write_beside(gateway, routes)
        assert gatewayd.in_flight(home, old.id, digest) == 1
        assert gatewayd.in_flight(home, "s/never#0@f:1", digest) == 0
        recorder.go_on.set()
        assert list(chunks) == [EVENT]
    wait_for(lambda: gatewayd.in_flight(home, old.id, digest) == 0, "the backend is drained")


def write_beside(gateway: Gateway, routes: dict[str, list[object]]) -> str:
    """As `serve`, over a connection of its own: the gateway's client is in the middle of a stream."""
    digest = gateway.write(codec.encode(table(routes)))  # type: ignore[arg-type]

    def is_served() -> bool:
        told = httpx.get(f"{gateway.url}/ready", trust_env=False).json()
        return bool(told["table"]["digest"] == digest)

    wait_for(is_served, "the new table is served by")
    return digest


def test_a_request_that_was_cancelled_is_not_counted(gateway: Gateway, recorder: RecordingEngine) -> None:
    home = Home(gateway.home)
    recorder.script = Script(200, {"content-type": "text/event-stream"}, [EVENT, None])
    old = backend(recorder.url, "old#0")
    gateway.serve({"fake": [old]})
    with gateway.client.stream("POST", "/v1/completions", json={"model": "fake"}) as reply:
        chunks = reply.iter_raw()
        next(chunks)
        digest = write_beside(gateway, {})
        assert gatewayd.in_flight(home, old.id, digest) == 1
    wait_for(lambda: gatewayd.in_flight(home, old.id, digest) == 0, "the backend is drained")


def test_all_workers_are_asked(tmp_path: Path, recorder: RecordingEngine) -> None:
    home = Home(tmp_path / "home")
    recorder.script = Script(200, {"content-type": "text/event-stream"}, [EVENT, None])
    old = backend(recorder.url, "old#0")
    with Gateway(home.root, "--workers", "2") as gateway:
        first = gateway.write(codec.encode(table({"fake": [old]})))
        wait_for(lambda: gatewayd.in_flight(home, old.id, first) == 0, "both workers serve the table")
        arrived = threading.Barrier(5)

        def ask() -> None:
            url = f"{gateway.url}/v1/completions"
            with httpx.stream("POST", url, json={"model": "fake"}, trust_env=False, timeout=30) as reply:
                chunks = reply.iter_raw()
                next(chunks)
                arrived.wait()
                list(chunks)

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        arrived.wait()
        digest = gateway.write(codec.encode(table({})))
        wait_for(lambda: gatewayd.in_flight(home, old.id, digest) == 4, "every request is counted")
        recorder.go_on.set()
        wait_for(lambda: gatewayd.in_flight(home, old.id, digest) == 0, "the backend is drained")
        for thread in asking:
            thread.join()
    assert gatewayd.in_flight(home, old.id, digest) is None


def test_a_deleted_run_folder_is_not_taken_for_drained(gateway: Gateway) -> None:
    home = Home(gateway.home)
    digest = gateway.serve({})
    shutil.rmtree(home.run)
    assert gatewayd.in_flight(home, "b", digest) in (1, 0)
    wait_for(lambda: gatewayd.in_flight(home, "b", digest) == 0, "the worker writes its record again")
    assert list((home.run / "gateway").glob("*.json"))
