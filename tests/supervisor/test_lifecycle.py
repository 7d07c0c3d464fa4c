"""Start, ready, restart, stop: with a real supervisor, a real engine and real signals."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.supervisor.conftest import Launch, is_alive, marked, until

Make = Callable[..., Launch]


def test_starts_becomes_ready_and_stops(launch: Make) -> None:
    one = launch().start()
    record = one.until_state("ready")
    assert record["version"] == 1
    assert record["mark"] == one.order["mark"]
    assert record["supervisor"]["pid"] == one.pid
    assert record["live"] == one.order["live"]
    assert record["restarts"] == 0
    assert record["ready_at"] >= record["engine"]["started"]
    assert is_alive(one.engine_pid())
    assert "POST /v1/chat/completions" in one.log()
    one.signal()
    one.until_gone()
    end = one.record("exit.json")
    assert (end["cause"], end["was_ready"], end["launch"]) == ("stopped", True, one.id)
    assert one.record()["state"] == "exited"
    assert marked(one.id) == {}


def test_every_process_carries_the_mark_and_the_supervisor_its_role(launch: Make) -> None:
    one = launch("--children", "1").start()
    one.until_state("ready")
    until("worker", lambda: len(marked(one.id)) == 3)
    found = marked(one.id)
    supervisor = found.pop(one.pid)
    assert supervisor["SAGE_ROLE"] == "supervisor"
    assert "HUB_TOKEN" not in supervisor
    for env in found.values():
        assert env["SAGE_LAUNCH"] == supervisor["SAGE_LAUNCH"]
        assert env["SPT_NOENV"] == "1"
        assert env["HUB_TOKEN"] == "hf_verysecret"
        assert "SAGE_ROLE" not in env


def test_is_a_session_leader_that_nobody_waits_for(launch: Make) -> None:
    one = launch().start()
    fields = Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[1]) != os.getpid()
    assert os.getsid(one.pid) == one.pid
    one.until_state("ready")
    engine = one.engine_pid()
    assert os.getsid(engine) == one.pid
    assert os.getpgid(engine) != os.getpgid(one.pid)
    assert os.readlink(f"/proc/{one.pid}/cwd") == "/"


def test_records_are_private_and_hold_no_secret(launch: Make) -> None:
    leak = "token hf_verysecret and Bearer sk-alsosecret, plain-secret"
    one = launch("--exit-at-start", "1", "--exit-message", leak)
    one.order["probe"]["headers"] = {"Authorization": "Bearer sk-alsosecret"}
    one.order["env"]["PLAIN"] = "plain-secret"
    one.order["secrets"] = ["PLAIN"]
    one.start()
    one.until_gone()
    assert one.record("exit.json")["tail"][-1] == "token *** and ***, ***"
    for name in ("launch.json", "exit.json"):
        path = one.directory / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "secret" not in path.read_text()
    assert stat.S_IMODE(one.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("probe", ["generate", "embed", "http"])
def test_each_kind_of_probe_finds_it_ready(launch: Make, probe: str) -> None:
    one = launch().live("health", probe=probe).start()
    one.until_state("ready")
    asked = {"generate": "/v1/chat/completions", "embed": "/v1/embeddings", "http": "GET /health"}
    assert asked[probe] in one.log()


def test_is_not_ready_while_only_health_answers(launch: Make) -> None:
    one = launch("--error-status", "503").start()
    until("a refused probe", lambda: "engine says no" in one.record()["message"])
    assert one.record()["state"] == "starting"
    assert one.record()["ready_at"] is None


def test_stop_ends_the_whole_tree_with_stubborn_children_in_own_sessions(launch: Make) -> None:
    one = launch("--children", "2", "--stubborn-children").start()
    one.until_state("ready")
    until("workers", lambda: len(marked(one.id)) == 4)
    one.signal()
    one.until_gone()
    assert marked(one.id) == {}
    assert one.record("exit.json")["cause"] == "stopped"


def test_a_crash_of_the_main_process_ends_its_children_before_the_restart(launch: Make) -> None:
    one = launch("--children", "1", "--stubborn-children").start()
    first = one.until_state("ready")["engine"]["pid"]
    until("worker", lambda: len(marked(one.id)) == 3)
    before = set(marked(one.id)) - {one.pid}
    os.kill(first, signal.SIGKILL)
    until("a second ready engine", lambda: one.record()["restarts"] == 1 and one.record()["state"] == "ready")
    assert not before & set(marked(one.id))
    end = one.record("exit.json")
    assert (end["signal"], end["pid"], end["was_ready"]) == (9, first, True)
    assert end["cause"] == "killed (out of host memory?)"
    assert "attempt 2" in one.log()
    assert f"pid {first}" in one.log("previous.log")


def test_an_engine_that_kills_its_process_group_does_not_kill_its_supervisor(launch: Make) -> None:
    one = launch().start()
    one.until_state("ready")
    os.killpg(one.engine_pid(), signal.SIGKILL)
    until("a restart", lambda: one.record()["restarts"] == 1)


def test_the_supervisors_death_takes_the_engine_and_leaves_readable_marks(launch: Make) -> None:
    one = launch("--children", "1", "--stubborn-children").start()
    one.until_state("ready")
    until("worker", lambda: len(marked(one.id)) == 3)
    engine = one.engine_pid()
    one.signal(signal.SIGKILL)
    until("the engine dies too", lambda: not is_alive(engine))
    (left,) = marked(one.id)
    assert left not in (one.pid, engine)


def test_sigint_and_sighup_are_ignored(launch: Make) -> None:
    one = launch().start()
    one.until_state("ready")
    engine = one.engine_pid()
    one.signal(signal.SIGINT)
    one.signal(signal.SIGHUP)
    (one.directory / "launch.json").unlink()
    until("it goes on", lambda: one.record().get("state") == "ready")
    assert one.engine_pid() == engine


def test_signals_are_at_their_defaults_whatever_its_caller_ignores(launch: Make) -> None:
    one = launch()
    one.order["argv"] = ["/bin/sh", "-c", "exec sleep 600"]
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        one.start()
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    until("the engine", lambda: "sleep" in Path(f"/proc/{one.engine_pid()}/comm").read_text())
    lines = Path(f"/proc/{one.engine_pid()}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0
    ignored = int(status["SigIgn"], 16)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
        assert not ignored & 1 << (number - 1), number
    one.signal()
    one.until_gone()
    assert one.record("exit.json")["cause"] == "stopped"


def test_a_second_sigterm_skips_the_drain(launch: Make) -> None:
    one = launch("--ignore-sigterm")
    one.order["live"]["drain"] = 3600.0
    one.start()
    one.until_state("ready")
    one.signal()
    one.until_state("stopping")
    one.signal()
    one.until_gone()
    assert one.record("exit.json")["signal"] == 9
    assert marked(one.id) == {}


def test_the_drain_budget_ends_in_a_kill(launch: Make) -> None:
    one = launch("--ignore-sigterm")
    one.order["live"]["drain"] = 0.3
    one.start()
    one.until_state("ready")
    one.signal()
    one.until_gone()
    end = one.record("exit.json")
    assert (end["cause"], end["signal"]) == ("stopped", 9)
    assert "after SIGTERM and was killed" in end["hint"]


def test_survives_the_death_of_its_caller(launch: Make, tmp_path: Path) -> None:
    one = launch()
    code = (
        "import json, os, signal, sys\n"
        "from sage_reconcile.supervisor.spawn import start\n"
        "print(start(json.load(sys.stdin)), flush=True)\n"
        "os.killpg(0, signal.SIGKILL)\n"
    )
    caller = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(one.order),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert caller.returncode == -signal.SIGKILL
    one.pid = int(caller.stdout)
    one.until_state("ready")


def test_stop_during_startup(launch: Make) -> None:
    one = launch("--listen-delay", "600").start()
    until("an engine", lambda: "fake engine" in one.log())
    one.signal()
    one.until_gone()
    assert one.record("exit.json")["was_ready"] is False
    assert one.record("exit.json")["cause"] == "stopped"


def test_a_double_forked_daemon_is_part_of_the_launch(launch: Make) -> None:
    one = launch()
    daemon = (
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(99)\n"
    )
    script = f"{sys.executable} -c '{daemon}'; exec \"$@\""
    one.order["argv"] = ["/bin/sh", "-c", script, "sh", *one.order["argv"]]
    one.start()
    one.until_state("ready")
    until("the daemon", lambda: len(marked(one.id)) == 3)
    one.signal()
    one.until_gone()
    assert marked(one.id) == {}


def test_a_launch_marks_itself_before_it_execs(launch: Make) -> None:
    """Whatever instant a supervisor is killed at, what is left can be told to be ours."""
    one = launch().start()
    engine = one.engine_pid()
    assert engine in marked(one.id)


def test_runs_as_a_module_too(launch: Make) -> None:
    one = launch()
    started = subprocess.run(
        [sys.executable, "-m", "sage_reconcile.supervisor"],
        input=json.dumps(one.order).encode(),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    one.pid = json.loads(started.stdout)["pid"]
    one.until_state("ready")
