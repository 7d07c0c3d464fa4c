"""The life of a gateway, by real processes; and what `sage gateway` prints."""

import json
import os
import signal
import socket
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from gateway.keys import load_keys
from sage_reconcile import gatewayd
from sage_reconcile.cli import gateway as cli
from sage_reconcile.cli.tail import follow, last_lines
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.gatewayd import GatewayOptions, life, spawn
from sage_reconcile.gatewayd.options import worker_records
from sage_reconcile.gatewayd.processes import members
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from tests.gateway.world import RecordingEngine, Script, backend, free_port, table, wait_for


def sage_gateway(*words: str) -> int:
    code = cli.app(list(words), result_action="return_value")
    assert isinstance(code, int)
    return code


def health(options: GatewayOptions) -> int:
    return httpx.get(f"{options.address}/health", trust_env=False).status_code


def test_start_find_stop(home: Home) -> None:
    options = GatewayOptions(port=free_port())
    assert gatewayd.find(home) is None
    started = gatewayd.start(home, options)
    assert health(options) == 200
    assert gatewayd.find(home) == started
    assert os.getsid(started.pid) == started.pid
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert gatewayd.stop(home) == started
    assert not psutil.pid_exists(started.pid)
    assert gatewayd.find(home) is None
    assert gatewayd.stop(home) is None


def test_found_without_any_file(home: Home) -> None:
    options = GatewayOptions(port=free_port(), log_level="warning")
    started = gatewayd.start(home, options)
    (home.run / "gateway" / "gateway.json").unlink()
    found = gatewayd.find(home)
    assert found == started
    assert found is not None
    assert found.options == options


def test_another_home_is_another_gateway(home: Home, tmp_path: Path) -> None:
    gatewayd.start(home, GatewayOptions(port=free_port()))
    other = Home(tmp_path / "other")
    assert gatewayd.find(other) is None
    assert gatewayd.stop(other) is None
    assert gatewayd.find(home) is not None


def test_already_running(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    started = gatewayd.start(home, GatewayOptions(port=free_port()))
    with pytest.raises(BlockedError, match=f"already runs: pid {started.pid}"):
        gatewayd.start(home, GatewayOptions(port=free_port()))
    assert sage_gateway("start", "--port", str(free_port())) == 0
    assert f"already runs: pid {started.pid}" in capsys.readouterr().out


def test_a_busy_port_names_its_holder(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(BlockedError, match=rf"port {port}: it is held by process {os.getpid()} \("):
            gatewayd.start(home, GatewayOptions(port=port))
    assert gatewayd.find(home) is None


def test_an_address_that_is_not_ours(home: Home) -> None:
    with pytest.raises(BlockedError, match=r"cannot listen on 192\.0\.2\.1"):
        gatewayd.start(home, GatewayOptions(host="192.0.2.1", port=free_port()), {"SAGE_API_KEYS": "k"})


def test_open_address_without_keys(home: Home) -> None:
    with pytest.raises(BlockedError, match="without API keys"):
        gatewayd.start(home, GatewayOptions(host="0.0.0.0", port=free_port()))


def test_an_end_at_start_tells_the_last_lines(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "check_port", lambda options: None)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(
            PermanentError, match=r"ended at start with code \d+:\n(.|\n)*address already in use"
        ):
            gatewayd.start(home, GatewayOptions(port=port))


def test_restart_keeps_options_and_keys(home: Home) -> None:
    options = GatewayOptions(port=free_port(), workers=2, log_level="warning")
    before = gatewayd.start(home, options, {**os.environ, "SAGE_API_KEYS": "k1", "ENGINE_SECRET": "s"})
    after = gatewayd.restart(home)
    assert after.options == options
    assert after.pid != before.pid
    assert psutil.Process(after.pid).environ()["ENGINE_SECRET"] == "s"
    url = f"{options.address}/v1/models"
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, trust_env=False, headers={"authorization": "Bearer k1"}).status_code == 200
    assert "k1" not in "".join(psutil.Process(after.pid).cmdline())
    assert "k1" not in (home.run / "gateway" / "gateway.json").read_text()


def test_restart_of_a_stopped_one(home: Home) -> None:
    with pytest.raises(BlockedError, match="sage gateway start"):
        gatewayd.restart(home)
    options = GatewayOptions(port=free_port(), log_level="error")
    gatewayd.start(home, options)
    gatewayd.stop(home)
    assert gatewayd.restart(home).options == options


def test_stop_ends_every_worker(home: Home) -> None:
    options = GatewayOptions(port=free_port(), workers=2)
    gatewayd.start(home, options)
    wait_for(lambda: len(worker_records(home)) == 2, "two workers")
    ended = members(home)
    assert len(ended) >= 3, "the parent and its workers"
    gatewayd.stop(home, force=True)
    assert not [process for process in ended if process.is_running()]
    socket.create_server(("127.0.0.1", options.port)).close()


def test_stop_lets_requests_end(home: Home, recorder: RecordingEngine) -> None:
    event = b"data: {}\n\n"
    recorder.script = Script(200, {"content-type": "text/event-stream"}, [event, None, event])
    home.routing_file.parent.mkdir(parents=True)
    home.routing_file.write_bytes(codec.encode(table({"fake": [backend(recorder.url)]})))
    options = GatewayOptions(port=free_port())
    gatewayd.start(home, options)
    url = f"{options.address}/v1/completions"
    with httpx.stream("POST", url, json={"model": "fake"}, trust_env=False, timeout=30) as reply:
        chunks = reply.iter_raw()
        next(chunks)
        stopping = threading.Thread(target=gatewayd.stop, args=(home,))
        stopping.start()
        wait_for(lambda: not is_listening(options.port), "the gateway takes no new connections")
        assert stopping.is_alive()
        recorder.go_on.set()
        assert list(chunks) == [event]
    stopping.join()
    assert gatewayd.find(home) is None


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_stop_kills_what_does_not_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "STOP_GRACE_S", 0.2)
    started = gatewayd.start(home, GatewayOptions(port=free_port()))
    # A stopped process handles no signal but SIGKILL.
    os.kill(started.pid, signal.SIGSTOP)
    assert gatewayd.stop(home) == started
    assert not psutil.pid_exists(started.pid)


def test_an_engine_that_inherited_the_mark_is_left_alone(home: Home) -> None:
    gatewayd.start(home, GatewayOptions(port=free_port()))
    with psutil.Popen(
        ["sleep", "1000"], env={"PATH": os.environ["PATH"], "SAGE_GATEWAY": str(home.root)}
    ) as child:
        try:
            gatewayd.stop(home, force=True)
            assert child.is_running()
            assert child.poll() is None
        finally:
            child.kill()


def test_a_large_log_is_put_aside(home: Home) -> None:
    home.logs.mkdir(parents=True)
    log = gatewayd.log_file(home)
    with log.open("wb") as file:
        file.truncate(spawn.LOG_ROTATE_BYTES + 1)
    gatewayd.start(home, GatewayOptions(port=free_port()))
    assert log.with_name("gateway.log.1").stat().st_size == spawn.LOG_ROTATE_BYTES + 1
    assert "Gateway running" in log.read_text()


def test_command_start_status_logs_stop(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert sage_gateway("status") == 1
    assert "does not run" in capsys.readouterr().out
    assert sage_gateway("start", "-p", str(port), "--log-level", "info") == 0
    printed = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}/health" in printed
    home.routing_file.parent.mkdir(parents=True)
    home.routing_file.write_bytes(codec.encode(table({"fake": [backend("http://127.0.0.1:9")]})))
    assert sage_gateway("status", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["running"], told["healthy"], told["address"]) == (True, True, f"http://127.0.0.1:{port}")
    assert told["engines"][0]["names"] == ["fake"]
    assert sage_gateway("status") == 0
    assert "s/e#0" in capsys.readouterr().out
    assert sage_gateway("logs", "-n", "2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert sage_gateway("restart") == 0
    assert sage_gateway("stop") == 0
    assert sage_gateway("stop", "--force") == 0
    assert capsys.readouterr().out.endswith("The gateway does not run.\n")


def test_logs_before_the_first_start(home: Home) -> None:
    with pytest.raises(BlockedError, match="not started yet"):
        sage_gateway("logs")


def test_following_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\ntwo\nthree\n")
    assert last_lines(log, 2) == ("two\nthree\n", 14)
    assert last_lines(log, 0) == ("", 14)
    lines = follow(log, 14)
    with log.open("a") as file:
        file.write("four\n")
    assert next(lines) == "four\n"
    log.rename(tmp_path / "a.log.1")
    log.write_text("five\n")
    assert next(lines) == "five\n"


def test_a_new_key(home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What is printed goes into a stack file as it is, and lets the key in; it is another one each time."""
    made = set()
    for _ in range(2):
        assert sage_gateway("key", "--name", "ui") == 0
        key, _, _, _, *entry = capsys.readouterr().out.splitlines()
        file = tmp_path / "sage.yaml"
        file.write_text("gateway:\n  keys:\n" + "\n".join(entry) + "\nengines: []\n")
        start = gatewayd.settle({}, str(file), {})
        found = load_keys(start.environ, "").find(f"Bearer {key}".encode(), b"")
        assert found is not None
        assert found.name == "ui"
        assert len(key) == len("sk-sage-") + 43
        assert key not in file.read_text()
        made.add(key)
    assert len(made) == 2
    assert not list(home.root.rglob("*"))


def test_a_key_has_a_name_that_the_stack_file_takes() -> None:
    with pytest.raises(PermanentError, match="cannot be the name of a key"):
        sage_gateway("key", "--name", "Team A")
