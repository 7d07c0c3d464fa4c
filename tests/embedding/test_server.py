"""The server as a real process: start, signals, and errors in one line."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from sage_reconcile.embedding.server import parse
from tests.embedding.fakes import DEADLINE, until

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
Start = Callable[..., "subprocess.Popen[str]"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*options: object) -> "subprocess.Popen[str]":
        command = [sys.executable, str(FAKE_SERVER), "--model", "tiny", *map(str, options)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(child)
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate()


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=DEADLINE).is_success
    except httpx.TransportError:
        return False


def test_sigterm_finishes_what_is_in_flight_and_exits_0(start: Start, tmp_path: Path) -> None:
    port, gate = free_port(), tmp_path / "gate"
    url = f"http://127.0.0.1:{port}"
    child = start("--port", port, "--gate", gate)
    until("health", lambda: is_healthy(url))
    gate.touch()
    with ThreadPoolExecutor(1) as pool:
        body = {"model": "tiny", "input": ["a", "b"]}
        answer = pool.submit(httpx.post, f"{url}/v1/embeddings", json=body, timeout=DEADLINE)
        assert child.stdout is not None
        until("the model at work", lambda: child.stdout.readline().strip() == "encoding")
        child.send_signal(signal.SIGTERM)
        until("no new connections", lambda: not is_healthy(url))
        gate.unlink()
        assert len(answer.result(DEADLINE).json()["data"]) == 2
    _, errors = child.communicate(timeout=DEADLINE)
    assert child.returncode == 0
    assert f"serving tiny on {url} (dim 8, max length 16 tokens, cpu)" in errors
    assert len(errors.splitlines()) == 1, errors


def test_sigterm_while_loading_exits_0_and_the_port_refuses_until_then(start: Start, tmp_path: Path) -> None:
    port, gate = free_port(), tmp_path / "gate"
    gate.touch()
    child = start("--port", port, "--load-gate", gate)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "loading"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), DEADLINE):
        pass
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=DEADLINE)
    assert (child.returncode, errors) == (0, "")


def test_a_busy_port_is_told_before_loading(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        child = start("--port", port)
        output, errors = child.communicate(timeout=DEADLINE)
    assert child.returncode == 1
    assert output == ""
    assert errors == (
        f"sage embedding: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "stop what holds it, or pass another --port\n"
    )


def run_real(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sage_reconcile.embedding.server", "--port", "0", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_a_model_directory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run_real("--model", str(tmp_path / "nothing"))
    assert done.returncode == 1
    reason = "there is no such directory; check the model's path"
    assert done.stderr == f"sage embedding: cannot load {tmp_path}/nothing: {reason}\n"


@pytest.mark.skipif(find_spec("torch") is not None, reason="this environment has torch")
def test_an_environment_without_torch_is_one_line() -> None:
    done = run_real("--model", "some/model")
    assert done.returncode == 1
    assert "install sage-reconcile[local] in this Python environment" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_options_have_defaults_that_the_engine_can_start_with() -> None:
    args = parse(["--model", "a/b"])
    assert (args.host, args.port, args.device, args.dtype, args.normalize) == (
        "127.0.0.1",
        8090,
        "auto",
        "auto",
        "auto",
    )
    assert parse(["--model", "a", "--served-model-name", "x", "y"]).served_model_name == ["x", "y"]


@pytest.mark.parametrize("option", ["--max-length", "--max-batch-tokens", "--max-queue-tokens"])
def test_limits_must_be_positive(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--model", "a", option, "0"])
    assert f"{option}: 0 is not a positive number" in capsys.readouterr().err
