"""How long requests may go on when a gateway ends: briefly if it was told to, long if another one serves."""

import http.client
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage_reconcile.home import Home
from tests.gateway.test_master import EVENT, STREAM, Client, is_listening, publish
from tests.gateway.world import DEADLINE_S, Process, RecordingEngine, Script, free_port, wait_for

# Told to end, it gives requests a moment where the product gives them 25 s.
HASTY = (
    "import sys; from gateway import master; from gateway.__main__ import main; "
    "master.DRAIN_S = 0.2; sys.exit(main(sys.argv[1:]))"
)


def hasty(stack: ExitStack, home: Path, port: int, *more: str) -> Process:
    place = ["--home", str(home), "--port", str(port), *more]
    gateway = Process([sys.executable, "-c", HASTY, *place])
    stack.callback(gateway.end)
    wait_for(lambda: is_listening(port) and "running on" in "".join(gateway.output), "it serves")
    return gateway


def test_told_to_end_it_cuts_off_what_lasts(
    stack: ExitStack, home_root: Path, recorder: RecordingEngine
) -> None:
    recorder.script = Script(200, STREAM, [EVENT, None, EVENT])
    publish(Home(home_root), recorder)
    port = free_port()
    gateway = hasty(stack, home_root, port)
    reply = stack.enter_context(Client(port)).begin()
    gateway.process.terminate()
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        reply.read()
    assert gateway.process.wait(DEADLINE_S) == -signal.SIGTERM


def test_replaced_it_lets_it_last(stack: ExitStack, home_root: Path, recorder: RecordingEngine) -> None:
    recorder.script = Script(200, STREAM, [EVENT, None, EVENT])
    publish(Home(home_root), recorder)
    port = free_port()
    old = hasty(stack, home_root, port)
    reply = stack.enter_context(Client(port)).begin()
    hasty(stack, home_root, port, "--take-over", str(old.process.pid))
    wait_for(lambda: "serves in this one's place" in "".join(old.output), "the old one drains")
    # Longer than it would wait if it had been told to end.
    with pytest.raises(subprocess.TimeoutExpired):
        old.process.wait(1.0)
    recorder.go_on.set()
    assert reply.read() == EVENT
    assert old.process.wait(DEADLINE_S) == 0
