"""Whose answer it is: a process that took the port while the engine loaded must not be taken for it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage_reconcile.supervisor import listener
from tests.supervisor.conftest import FAKE_ENGINE, Launch, free_port, is_alive, marked, until

Make = Callable[..., Launch]
# A server under another name, for what is told by the name of a process.
RENAMED = (
    "import ctypes, runpy, sys; ctypes.CDLL(None).prctl(15, sys.argv[1].encode()); "
    "runpy.run_path({!r}, run_name='__main__')"
)


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Starts servers that are of no launch, waits until they listen, and ends them after the test."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(port: int, *prefix: str, name: str = "stranger") -> int:
        code = RENAMED.format(str(FAKE_ENGINE))
        command = [*prefix, sys.executable, "-c", code, name, "--port", str(port)]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until("the server listens", lambda: _listens(port))
        return servers[-1].pid

    yield start
    for server in servers:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_an_answer_of_a_stranger_is_no_readiness(launch: Make, serve: Callable[..., int]) -> None:
    one = launch("--listen-delay", "600").start()
    one.engine_pid()
    pid = serve(one.port)
    one.until_gone()
    end = one.record("exit.json")
    assert end["cause"] == f"stranger (process {pid}) listens on its port {one.port}"
    assert "choose another port" in end["hint"]
    assert not end["was_ready"]
    assert one.record()["ready_at"] is None
    assert is_alive(pid)
    assert marked(one.id) == {}


def test_a_port_taken_between_two_attempts(launch: Make, serve: Callable[..., int], tmp_path: Path) -> None:
    """The restarts go on, and the one that finds its port free again serves."""
    stop = tmp_path / "wait"
    one = launch().live("restart", backoff=0.5, backoff_max=0.5, max_attempts=100)
    wait = 'while [ -e "$0" ]; do sleep 0.05; done; exec "$@"'
    one.order["argv"] = ["/bin/sh", "-c", wait, str(stop), *one.order["argv"]]
    one.start().until_state("ready")
    stop.touch()
    os.kill(one.engine_pid(), signal.SIGKILL)
    until("it is down", lambda: not _listens(one.port))
    pid = serve(one.port)
    until("it is noticed", lambda: f"stranger (process {pid})" in one.record("exit.json").get("cause", ""))
    os.kill(pid, signal.SIGKILL)
    stop.unlink()
    one.until_state("ready")


def test_a_server_deep_in_the_tree_is_the_launchs_own(launch: Make) -> None:
    one = launch()
    daemonised = '(setsid "$0" "$@" &) ; exec sleep 600'
    one.order["argv"] = ["/bin/sh", "-c", daemonised, *one.order["argv"]]
    one.start().until_state("ready")


@pytest.mark.parametrize("kind", ["forwarder", "container"])
def test_a_server_in_a_container_is_accepted(launch: Make, serve: Callable[..., int], kind: str) -> None:
    """What `docker run` starts is nobody's child here."""
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if kind == "container" and subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this host lets nobody make a PID namespace")
    one = launch()
    one.order["argv"] = ["/bin/sleep", "600"]
    one.start().engine_pid()
    if kind == "container":
        serve(one.port, *namespace)
    else:
        serve(one.port, name="docker-proxy")
    one.until_state("ready")


@pytest.fixture
def other() -> Iterator[int]:
    """A process that is the root of a tree of its own."""
    process = subprocess.Popen(["/bin/sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("host", "family", "target"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("0.0.0.0", socket.AF_INET, "127.0.0.1"),
        ("0.0.0.0", socket.AF_INET, "localhost"),
        ("::", socket.AF_INET6, "127.0.0.1"),
    ],
)
def test_found_by_the_address_that_answers_among_many_sockets(
    other: int, host: str, family: socket.AddressFamily, target: str
) -> None:
    """Also where a crowd of connections to it is open."""
    port = free_port()
    both = family == socket.AF_INET6
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((host, port), family=family, dualstack_ipv6=both))
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stack.enter_context(server.accept()[0])
        assert listener.stranger(other, target, port).endswith(f"(process {os.getpid()})")
        assert listener.stranger(os.getpid(), target, port) == ""
        server.close()
        assert listener.stranger(other, target, port) == ""


def test_another_address_is_no_matter(other: int) -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        assert listener.stranger(other, "127.0.0.1", port) == ""
        assert listener.stranger(other, "127.0.0.2", port) != ""
