"""The parent of the workers: crashes, signals, and restarts that no client notices."""

import http.client
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import psutil
import pytest

from gateway import handover, listening
from gateway.settings import Settings
from gateway.workers import Workers
from sage_reconcile import gatewayd, journal
from sage_reconcile.errors import PermanentError
from sage_reconcile.gatewayd import GatewayOptions, GatewayProcess, renewal
from sage_reconcile.gatewayd.options import worker_records
from sage_reconcile.gatewayd.processes import family, is_parent, members
from sage_reconcile.gatewayd.reach import health_pid
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from tests.gateway.hammer import Hammer
from tests.gateway.world import (
    DEADLINE_S,
    Gateway,
    Process,
    RecordingEngine,
    Script,
    backend,
    digest_of,
    free_port,
    table,
    wait_for,
)
from tests.processes import is_alive

EVENT = b"data: {}\n\n"
STREAM = {"content-type": "text/event-stream"}


def workers_of(parent: int) -> set[int]:
    return {process.pid for process in family(parent)[1:]}


def publish(home: Home, engine: RecordingEngine) -> None:
    """A table with one backend, before the gateway starts."""
    home.routing_file.parent.mkdir(parents=True, exist_ok=True)
    home.routing_file.write_bytes(codec.encode(table({"fake": [backend(engine.url)]})))


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


class Client:
    """One kept-alive connection, and so one worker: `pid`."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        self.connection.request("GET", "/health")
        self.pid = int(json.loads(self.connection.getresponse().read())["pid"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def begin(self, model: str = "fake") -> http.client.HTTPResponse:
        """A stream whose first event has come."""
        body = json.dumps({"model": model, "prompt": "hi", "stream": True})
        headers = {"content-type": "application/json"}
        self.connection.request("POST", "/v1/completions", body, headers)
        reply = self.connection.getresponse()
        assert (reply.status, reply.read1()) == (200, EVENT)
        return reply


@contextmanager
def clients_of(port: int, pids: set[int]) -> Iterator[dict[int, Client]]:
    """A client of each of these workers."""
    found: dict[int, Client] = {}
    spare: list[Client] = []

    def look() -> bool:
        client = Client(port)
        spare.append(client)
        found.setdefault(client.pid, client)
        return pids <= found.keys()

    try:
        wait_for(look, "a connection to each worker")
        yield found
    finally:
        for client in spare:
            client.connection.close()


@contextmanager
def broken_workers(folder: Path) -> Iterator[dict[str, str]]:
    """An environment in which a worker cannot start while the block runs: what serves cannot be imported."""
    folder.mkdir()
    fault = folder / "uvloop.py"
    fault.write_text("raise ImportError('this is no uvloop')\n")
    try:
        yield {"PYTHONPATH": str(folder)}
    finally:
        fault.unlink()


def test_a_killed_worker_takes_only_its_own_requests_along(
    tmp_path: Path, stack: ExitStack, recorder: RecordingEngine
) -> None:
    gateway = stack.enter_context(Gateway(tmp_path / "home", "--workers", "2"))
    quick = stack.enter_context(RecordingEngine())
    gateway.serve({"fake": [backend(quick.url)], "slow": [backend(recorder.url, "slow#0")]})
    recorder.script = Script(200, STREAM, [EVENT, None, EVENT])
    pids = workers_of(gateway.process.pid)
    assert len(pids) == 2
    victim, survivor = pids
    with Hammer(gateway.port) as hammer:
        with clients_of(gateway.port, pids) as clients:
            kept = clients[survivor].begin("slow")
            os.kill(victim, signal.SIGKILL)
            wait_for(lambda: victim not in workers_of(gateway.process.pid), "the worker is gone")
            hammer.goes_on()
            recorder.go_on.set()
            assert kept.read() == EVENT
        wait_for(lambda: len(ready_of(gateway)) == 2, "another worker serves")
        hammer.goes_on()
    assert ready_of(gateway) - pids, "a new one"
    assert worker_records(Home(gateway.home)).keys() == workers_of(gateway.process.pid)
    assert max(len(failures) for failures in hammer.failures) <= 1, hammer.failures
    told = f"worker {victim} ended by SIGKILL; another one starts"
    assert told in "".join(gateway.output)
    assert [e["message"] for e in journal.read(Home(gateway.home)) if e["subject"] == "gateway"] == [told]


def ready_of(gateway: Gateway) -> set[int]:
    """The living workers that keep a record, and so serve."""
    return worker_records(Home(gateway.home)).keys() & workers_of(gateway.process.pid)


def test_a_worker_that_is_told_to_end_is_replaced_while_it_finishes(
    tmp_path: Path, stack: ExitStack, recorder: RecordingEngine
) -> None:
    recorder.script = Script(200, STREAM, [EVENT, None, EVENT])
    gateway = stack.enter_context(Gateway(tmp_path / "home"))
    gateway.serve({"fake": [backend(recorder.url)]})
    [pid] = workers_of(gateway.process.pid)
    reply = stack.enter_context(Client(gateway.port)).begin()
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: health_pid(GatewayOptions(port=gateway.port)) not in (pid, None), "another one serves")
    assert pid in workers_of(gateway.process.pid)
    recorder.go_on.set()
    assert reply.read() == EVENT
    wait_for(lambda: not is_alive(pid), "it has ended")
    assert len(workers_of(gateway.process.pid)) == 1


def test_a_worker_that_cannot_start_again_is_tried_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    with broken_workers(folder) as environ:
        (folder / "uvloop.py").rename(folder / "aside")
        with Gateway(tmp_path / "home", environ=environ) as gateway:
            (folder / "aside").rename(folder / "uvloop.py")
            [pid] = workers_of(gateway.process.pid)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: "another one starts in 0.5 s" in "".join(gateway.output), "a second failure")
            (folder / "uvloop.py").rename(folder / "aside")
            wait_for(lambda: ready_of(gateway), "another worker serves")
            assert gateway.client.get("/health").json()["pid"] != pid
        (folder / "aside").rename(folder / "uvloop.py")


def test_workers_that_never_start_again_end_the_gateway(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    with broken_workers(folder) as environ:
        (folder / "uvloop.py").rename(folder / "aside")
        with Gateway(tmp_path / "home", environ=environ) as gateway:
            (folder / "aside").rename(folder / "uvloop.py")
            for pid in workers_of(gateway.process.pid):
                os.kill(pid, signal.SIGKILL)
            assert gateway.process.wait(DEADLINE_S) == 1
    told = "".join(gateway.output)
    assert "this is no uvloop" in told
    assert "ended at start with code 1; the gateway ends" in told


def test_a_worker_that_ends_at_the_first_start_ends_the_gateway(home: Home, tmp_path: Path) -> None:
    with (
        broken_workers(tmp_path / "broken") as environ,
        pytest.raises(PermanentError, match=r"ended at start with code 1:\n(.|\n)*this is no uvloop"),
    ):
        gatewayd.start(home, GatewayOptions(port=free_port()), {**os.environ, **environ})


def test_a_worker_that_the_system_does_not_start() -> None:
    workers = Workers(["x" * (4 << 20)], 1, print)
    assert workers.fill() == []
    assert workers.fault == "a worker cannot be started: Argument list too long"


def test_a_killed_parent_takes_its_workers_along(tmp_path: Path) -> None:
    with Gateway(tmp_path / "home", "--workers", "2") as gateway:
        wait_for(lambda: len(ready_of(gateway)) == 2, "two workers")
        workers = family(gateway.process.pid)[1:]
        gateway.process.kill()
        _, alive = psutil.wait_procs(workers, DEADLINE_S)
        assert alive == []
        assert not is_listening(gateway.port)
        assert worker_records(Home(gateway.home)) == {}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_lets_a_stream_end(
    tmp_path: Path, stack: ExitStack, recorder: RecordingEngine, workers: str
) -> None:
    recorder.script = Script(200, STREAM, [EVENT, None, EVENT])
    with Gateway(tmp_path / "home", "--workers", workers) as gateway:
        gateway.serve({"fake": [backend(recorder.url)]})
        reply = stack.enter_context(Client(gateway.port)).begin()
        gateway.process.terminate()
        wait_for(lambda: not is_listening(gateway.port), "no new connections are taken")
        assert gateway.process.poll() is None
        recorder.go_on.set()
        assert reply.read() == EVENT
        assert gateway.process.wait(DEADLINE_S) == -signal.SIGTERM


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(
    tmp_path: Path, stack: ExitStack, recorder: RecordingEngine, second: signal.Signals
) -> None:
    recorder.script = Script(200, STREAM, [EVENT, None, EVENT])
    with Gateway(tmp_path / "home") as gateway:
        gateway.serve({"fake": [backend(recorder.url)]})
        reply = stack.enter_context(Client(gateway.port)).begin()
        gateway.process.send_signal(signal.SIGINT)
        wait_for(lambda: not is_listening(gateway.port), "no new connections are taken")
        gateway.process.send_signal(second)
        assert gateway.process.wait(DEADLINE_S) == 0
        with pytest.raises((OSError, http.client.HTTPException)):
            reply.read()


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    port = free_port()
    run = f"trap '' HUP; exec {sys.executable} -m gateway --home {tmp_path} --port {port}"
    with ExitStack() as stack:
        process = Process(["sh", "-c", run])
        stack.callback(process.end)
        wait_for(lambda: health_pid(GatewayOptions(port=port)), "it serves")
        for pid in (process.process.pid, *workers_of(process.process.pid)):
            status = Path(f"/proc/{pid}/status").read_text()
            ignored = int(status.split("SigIgn:")[1].split()[0], 16)
            assert ignored >> (signal.SIGHUP - 1) & 1


def test_the_parent_is_small(gateway: Gateway) -> None:
    parent, worker = family(gateway.process.pid)
    assert parent.memory_info().rss < worker.memory_info().rss / 2
    maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in (parent, worker)]
    assert ["uvloop" in text for text in maps] == [False, True]


def test_workers_know_how_many_they_are(tmp_path: Path) -> None:
    with Gateway(tmp_path / "home", "--workers", "3") as gateway:
        for process in family(gateway.process.pid)[1:]:
            assert Settings.from_environ(process.environ()).workers == 3


def start_two(home: Home, engine: RecordingEngine) -> GatewayProcess:
    publish(home, engine)
    return gatewayd.start(home, GatewayOptions(port=free_port(), workers=2))


def test_a_restart_loses_nothing(home: Home, recorder: RecordingEngine) -> None:
    before = start_two(home, recorder)
    with Hammer(before.options.port) as hammer:
        after = gatewayd.restart(home)
        hammer.goes_on()
        wait_for(lambda: not is_alive(before.pid), "the old one has ended")
        hammer.goes_on()
    assert hammer.failures == [[], [], [], []]
    assert after.pid != before.pid
    assert after.options == before.options
    assert gatewayd.find(home) == after
    assert health_pid(after.options) in workers_of(after.pid)
    assert {process.pid for process in members(home)} == {after.pid, *workers_of(after.pid)}


def test_two_restarts_at_once_lose_nothing(home: Home, recorder: RecordingEngine) -> None:
    before = start_two(home, recorder)
    made: list[GatewayProcess] = []
    with Hammer(before.options.port) as hammer:
        restarting = [threading.Thread(target=lambda: made.append(gatewayd.restart(home))) for _ in range(2)]
        for thread in restarting:
            thread.start()
        for thread in restarting:
            thread.join()
        last = gatewayd.find(home)
        wait_for(lambda: len([one for one in members(home) if is_parent(one)]) == 1, "one is left")
        hammer.goes_on()
    assert hammer.failures == [[], [], [], []]
    assert len({one.pid for one in made} - {before.pid}) == 2
    assert last in made
    assert gatewayd.find(home) == last


def test_a_stream_outlives_a_restart(home: Home, stack: ExitStack, recorder: RecordingEngine) -> None:
    """Both gateways live as long as it lasts: the new one is found, the requests of both are counted."""
    recorder.script = Script(200, STREAM, [EVENT, None, EVENT])
    before = start_two(home, recorder)
    client = stack.enter_context(Client(before.options.port))
    reply = client.begin()
    after = gatewayd.restart(home)
    assert gatewayd.find(home) == after
    assert gatewayd.is_healthy(after)
    assert client.pid in worker_records(home)
    data = codec.encode(table({}))
    home.routing_file.write_bytes(data)
    drained = backend(recorder.url).id
    wait_for(lambda: gatewayd.in_flight(home, drained, digest_of(data)) == 1, "the request is counted")
    recorder.go_on.set()
    assert reply.read() == EVENT
    wait_for(lambda: gatewayd.in_flight(home, drained, digest_of(data)) == 0, "the backend is drained")
    wait_for(lambda: not is_alive(before.pid), "the old one has ended")
    assert worker_records(home).keys() == workers_of(after.pid)


def test_stop_ends_the_old_one_too(home: Home, stack: ExitStack, recorder: RecordingEngine) -> None:
    recorder.script = Script(200, STREAM, [EVENT, None, EVENT])
    before = start_two(home, recorder)
    reply = stack.enter_context(Client(before.options.port)).begin()
    gatewayd.restart(home)
    both = members(home)
    assert [one.pid for one in both if is_parent(one)][1:] == [before.pid]
    stopping = threading.Thread(target=gatewayd.stop, args=(home,))
    stopping.start()
    wait_for(lambda: not is_listening(before.options.port), "no new connections are taken")
    recorder.go_on.set()
    assert reply.read() == EVENT
    stopping.join()
    assert not [one for one in both if one.is_running()]
    assert worker_records(home) == {}


def test_a_restart_that_fails_leaves_the_old_one(
    home: Home, tmp_path: Path, recorder: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = start_two(home, recorder)
    serving = members(home)
    with Hammer(before.options.port) as hammer:
        with broken_workers(tmp_path / "broken") as environ, monkeypatch.context() as patched:
            patched.setenv("PYTHONPATH", environ["PYTHONPATH"])
            with pytest.raises(PermanentError, match=r"ended at start with code 1:\n(.|\n)*no uvloop"):
                gatewayd.restart(home)
        hammer.goes_on()
        assert gatewayd.find(home) == before
        assert members(home) == serving
        after = gatewayd.restart(home)
    assert after.pid != before.pid
    assert hammer.failures == [[], [], [], []]


def test_a_restart_without_its_key_file_stops_nothing(home: Home, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    before = gatewayd.start(home, GatewayOptions(port=free_port(), api_key_file=str(keys)))
    keys.unlink()
    with pytest.raises(PermanentError, match="cannot read the API key file"):
        gatewayd.restart(home)
    assert gatewayd.find(home) == before
    assert gatewayd.is_healthy(before)


def test_a_restart_on_another_port(home: Home, tmp_path: Path) -> None:
    """The new one serves there before the old one lets go here."""
    file = tmp_path / "sage.yaml"
    ports = free_port(), free_port()
    file.write_text(f"version: 1\nname: demo\ngateway: {{port: {ports[0]}}}\nengines: []\n")
    before = gatewayd.start(home, GatewayOptions(port=ports[0], stack=str(file)))
    file.write_text(f"version: 1\nname: demo\ngateway: {{port: {ports[1]}}}\nengines: []\n")
    after = gatewayd.restart(home)
    assert (before.options.port, after.options.port) == ports
    assert gatewayd.is_healthy(after)
    wait_for(lambda: not is_listening(ports[0]), "the old port is given up")
    wait_for(lambda: not is_alive(before.pid), "the old one has ended")
    assert gatewayd.recorded_options(home) == after.options


def test_a_restart_of_one_that_was_killed(home: Home) -> None:
    before = gatewayd.start(home, GatewayOptions(port=free_port(), workers=2))
    for process in members(home):
        process.kill()
    wait_for(lambda: not members(home), "all of it is gone")
    assert not handover.is_offered(before.pid)
    after = gatewayd.restart(home)
    assert after.options == before.options
    assert gatewayd.is_healthy(after)


def test_one_that_cannot_hand_over_is_stopped_first(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gatewayd.start(home, GatewayOptions(port=free_port()))
    monkeypatch.setattr(renewal, "is_offered", lambda pid: False)
    after = gatewayd.restart(home)
    assert not psutil.pid_exists(before.pid)
    assert gatewayd.find(home) == after


def test_a_stranger_under_the_name_of_another_process() -> None:
    """Anybody may bind an abstract name: one that is not of its own pid is not connected to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        namespace = os.stat("/proc/self/ns/pid").st_ino
        stranger.bind(f"\0sage-gateway-{namespace}-{os.getppid()}".encode())
        stranger.listen()
        assert handover.connect(os.getppid()) is None
        accepted, _ = stranger.accept()
        accepted.close()


def test_another_home_gets_no_sockets(home: Home, tmp_path: Path) -> None:
    started = gatewayd.start(home, GatewayOptions(port=free_port()))
    command = [sys.executable, "-m", "gateway", "--home", str(tmp_path / "other")]
    other = Process([*command, "--port", str(free_port()), "--take-over", str(started.pid)])
    assert other.process.wait(DEADLINE_S) == 1
    other.end()
    assert "does not hand over: it says 'other home'" in "".join(other.output)
    assert gatewayd.is_healthy(started)


def test_listens_on_every_address_of_a_name() -> None:
    port = free_port()
    sockets = listening.listen("localhost", port)
    assert ("127.0.0.1", port) in [one.getsockname()[:2] for one in sockets]
    with pytest.raises(OSError, match=f"cannot listen on localhost port {port}: address already in use"):
        listening.listen("localhost", port)
    listening.close(sockets)
    assert not is_listening(port)
