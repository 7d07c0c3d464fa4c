"""Who is ended, and who is not: real processes, of the launch and of others."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from sage_reconcile.apply.processes import Members, is_supervisor, kill, send_to_supervisor
from tests.processes import is_alive
from tests.waiting import wait_until

HOME, LAUNCH = "/nowhere/home", "0badcafe"
MARK = json.dumps({"home": HOME, "launch": LAUNCH})
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

Start = Callable[..., int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process with this environment; it leads a session of its own unless told otherwise."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*command: str, session: bool = True, user: int | None = None, **environ: str) -> int:
        process = subprocess.Popen(
            command or SLEEP,
            env={"PATH": os.environ["PATH"], **environ},
            start_new_session=session,
            user=user,
        )
        running.append(process)
        return process.pid

    yield begin
    for process in running:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def pids(members: Members) -> set[int]:
    return {one.pid for one in members.look()}


def test_the_mark_of_this_home_is_a_proof_and_no_other_is(start: Start) -> None:
    ours = start(SAGE_LAUNCH=MARK)
    start(SAGE_LAUNCH=json.dumps({"home": "/another/home", "launch": LAUNCH}))
    start(SAGE_LAUNCH=json.dumps({"home": HOME, "launch": "another"}))
    start(SAGE_LAUNCH="{not json")
    assert pids(Members(LAUNCH, HOME, None)) == {ours}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start processes of others")
def test_a_mark_that_another_user_copied_proves_nothing(start: Start) -> None:
    stranger = start("sleep", "600", user=65534, SAGE_LAUNCH=MARK)
    members = Members(LAUNCH, HOME, None)
    assert members.look() == []
    kill(members.look())
    assert is_alive(stranger)


def test_a_session_with_another_living_leader_is_somebodys_terminal(start: Start) -> None:
    script = f"SAGE_LAUNCH='{MARK}' sleep 600 & echo; sleep 600 & wait"
    shell = start("sh", "-c", script)
    members = Members(LAUNCH, HOME, shell)
    found = wait_until(lambda: pids(members), "the marked one is found")
    assert shell not in found
    assert len(found) == 1
    kill(members.look())
    wait_until(lambda: not members.look(), "it ends")
    assert is_alive(shell)


def test_the_session_of_a_supervisor_that_is_gone_is_a_proof(start: Start) -> None:
    """Even for a process without a mark: nobody can get that session id while it has members."""
    leader = start("sh", "-c", "sleep 600 & sleep 0.05")
    members = Members(LAUNCH, HOME, leader)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(leader, 0)
    (left,) = wait_until(lambda: pids(members), "the leftover is found")
    assert os.getsid(left) == leader
    kill(members.look())
    wait_until(lambda: not is_alive(left), "it ends")


def test_who_was_found_by_descent_stays_known_without_its_parents(start: Start) -> None:
    hidden = (
        "import os, subprocess, sys; p = subprocess.Popen(['sleep', '600'], env={}, start_new_session=True)"
    )
    parent = start(sys.executable, "-c", f"{hidden}; p.wait()", SAGE_LAUNCH=MARK)
    members = Members(LAUNCH, HOME, None)
    found = wait_until(lambda: len(pids(members)) == 2 and pids(members), "its child is found")
    (child,) = found - {parent}
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert pids(members) == {child}
    kill(members.look())
    wait_until(lambda: not is_alive(child), "it ends")


def test_sage_started_inside_an_engine_does_not_end_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; sys.path.insert(0, '.');"
        "from sage_reconcile.apply.processes import Members;"
        f"print(Members({LAUNCH!r}, {HOME!r}, None).look())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"SAGE_LAUNCH": MARK}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_only_the_supervisor_of_this_launch_and_home_is_signalled(start: Start) -> None:
    supervisor = start(SAGE_LAUNCH=MARK, SAGE_ROLE="supervisor")
    engine = start(SAGE_LAUNCH=MARK)
    wait_until(lambda: is_supervisor(supervisor, LAUNCH, HOME), "the environment shows")
    assert not is_supervisor(engine, LAUNCH, HOME)
    assert not send_to_supervisor(engine, LAUNCH, HOME, signal.SIGTERM)
    assert not send_to_supervisor(supervisor, LAUNCH, "/another/home", signal.SIGTERM)
    assert not send_to_supervisor(supervisor, "another", HOME, signal.SIGTERM)
    assert is_alive(supervisor)
    assert send_to_supervisor(supervisor, LAUNCH, HOME, signal.SIGTERM)
    assert os.waitpid(supervisor, 0)[1] == signal.SIGTERM
