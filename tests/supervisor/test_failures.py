"""Engines that fail: before they were ready, after, again and again, or by hanging."""

import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from sage_reconcile.supervisor.spawn import start
from tests.supervisor.conftest import Launch, is_alive, marked, until

Make = Callable[..., Launch]


def test_an_exit_before_ready_ends_the_launch(launch: Make) -> None:
    message = "ValueError: No available memory for the cache blocks."
    one = launch("--exit-at-start", "7", "--exit-message", message).start()
    one.until_gone()
    end = one.record("exit.json")
    assert (end["code"], end["signal"], end["was_ready"]) == (7, None, False)
    assert end["cause"] == "KV cache does not fit"
    assert "gpu_memory" in end["hint"]
    assert end["tail"][-1] == message
    record = one.record()
    assert (record["state"], record["engine"], record["restarts"]) == ("exited", None, 0)


@pytest.mark.parametrize(
    ("argv", "cwd", "cause"),
    [
        (["/no/such/engine", "--port", "1"], None, "cannot start: No such file: /no/such/engine"),
        (["no-such-engine-in-path"], None, "cannot start: No such file: no-such-engine-in-path"),
        (["/etc/passwd"], None, "cannot start: Permission denied: /etc/passwd"),
        (["/bin/true"], "/no/such/place", "cannot start: working directory /no/such/place: No such file"),
    ],
)
def test_what_cannot_be_started_says_so(launch: Make, argv: list[str], cwd: str | None, cause: str) -> None:
    one = launch()
    one.order |= {"argv": argv, "cwd": cwd}
    one.start()
    one.until_gone()
    assert one.record("exit.json")["cause"].startswith(cause)
    assert one.record()["state"] == "exited"


def test_a_script_whose_interpreter_is_missing(launch: Make, tmp_path: Path) -> None:
    script = tmp_path / "engine"
    script.write_text("#!/no/such/python\n")
    script.chmod(0o700)
    one = launch()
    one.order["argv"] = [str(script)]
    one.start()
    one.until_gone()
    assert "interpreter" in one.record("exit.json")["cause"]


def test_a_program_is_looked_up_in_the_engines_path(launch: Make, tmp_path: Path) -> None:
    script = tmp_path / "my-engine"
    script.write_text("#!/bin/sh\necho found in $PWD\nexit 4\n")
    script.chmod(0o700)
    one = launch()
    one.order |= {"argv": ["my-engine"], "env": {"PATH": f"{tmp_path}:/bin"}, "cwd": str(tmp_path)}
    one.start()
    one.until_gone()
    assert one.record("exit.json")["code"] == 4
    assert one.record("exit.json")["tail"] == [f"found in {tmp_path}"]


def test_never_ready_ends_at_the_startup_timeout(launch: Make) -> None:
    one = launch("--error-status", "503").live("health", startup_timeout=3.0).start()
    one.until_gone()
    end = one.record("exit.json")
    assert end["cause"] == "not ready within 3 s"
    assert (end["code"], end["signal"]) == (None, None), "that it was killed then says nothing"
    assert "engine says no" in end["hint"]
    assert marked(one.id) == {}


def test_an_engine_that_waits_for_its_model_says_so(launch: Make) -> None:
    """It would go on trying for ever, and nothing listens: that is not what its user has to know."""
    one = launch().live("health", startup_timeout=1.0)
    retries = "echo thrown while requesting HEAD https://huggingface.co/Qwen/Nope/resolve/main/config.json"
    one.order["argv"] = ["/bin/sh", "-c", f"{retries}; exec sleep 600"]
    one.start().until_gone()
    end = one.record("exit.json")
    assert end["cause"] == "not ready within 1 s: model cannot be fetched"
    assert "check network and proxy" in end["hint"]


def test_a_hanging_readiness_request_does_not_outlast_the_startup_timeout(launch: Make) -> None:
    one = launch("--never-ready").live("health", startup_timeout=1.0).start()
    one.until_gone()
    assert one.record("exit.json")["cause"] == "not ready within 1 s"


def test_the_first_restart_does_not_wait(launch: Make) -> None:
    one = launch().live("restart", backoff=3600.0, backoff_max=3600.0).start()
    one.until_state("ready")
    first = one.engine_pid()
    os.kill(first, signal.SIGKILL)
    until("another engine", lambda: one.record()["restarts"] == 1 and one.engine_pid() != first)
    assert one.until_state("ready")["next_attempt_at"] is None


def test_a_crash_is_followed_by_a_restart_and_ready_again(launch: Make, tmp_path: Path) -> None:
    counter = tmp_path / "starts"
    one = launch("--counter-file", str(counter)).start()
    one.until_state("ready")
    os.kill(one.engine_pid(), signal.SIGSEGV)
    until("a restart", lambda: one.record()["restarts"] == 1)
    record = one.until_state("ready")
    assert record["next_attempt_at"] is None
    assert counter.read_text() == "start\n" * 2
    assert one.record("exit.json")["cause"] == "crashed (SIGSEGV)"


def test_backoff_says_what_happens_next_and_can_be_stopped(launch: Make) -> None:
    one = launch().live("restart", backoff=3600.0, backoff_max=3600.0).start()
    one.until_state("ready")
    first = one.engine_pid()
    os.kill(first, signal.SIGKILL)
    until("the first restart, at once", lambda: one.record()["restarts"] == 1)
    one.until_state("ready")
    os.kill(one.engine_pid(), signal.SIGKILL)
    record = one.until_state("backoff")
    assert record["engine"] is None
    assert record["next_attempt_at"] > record["since"]
    assert record["message"].startswith("killed by signal 9; restart 2 follows in")
    one.signal()
    one.until_gone()
    assert one.record("exit.json")["cause"] == "stopped"


def test_gives_up_after_max_attempts(launch: Make, tmp_path: Path) -> None:
    counter = tmp_path / "starts"
    one = launch("--die-on-request-number", "2", "--counter-file", str(counter))
    one.live("restart", max_attempts=2).start()
    for _ in range(3):
        until("another start", lambda: one.record()["state"] == "ready")
        engine = one.engine_pid()
        os.kill(engine, signal.SIGKILL)
        until("its end", lambda pid=engine: (one.record()["engine"] or {}).get("pid") != pid)
    one.until_gone()
    assert counter.read_text() == "start\n" * 3
    assert "gave up: max_attempts (2)" in one.record("exit.json")["hint"]
    assert "gave up" in one.record()["message"]


def test_a_restart_that_is_never_ready_counts_as_an_attempt(launch: Make, tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    script = 'if [ -e "$0" ]; then echo broken again; exit 5; fi; exec "$@"'
    one = launch()
    one.order["argv"] = ["/bin/sh", "-c", script, str(flag), *one.order["argv"]]
    one.live("restart", max_attempts=3, window=0.0).start()
    one.until_state("ready")
    flag.touch()
    os.kill(one.engine_pid(), signal.SIGKILL)
    one.until_gone()
    end = one.record("exit.json")
    assert (end["code"], end["was_ready"]) == (5, False)
    assert one.record()["restarts"] == 3


@pytest.mark.parametrize(
    ("policy", "number", "restarts"),
    [("never", signal.SIGKILL, 0), ("on-failure", signal.SIGTERM, 0), ("on-failure", signal.SIGKILL, 1)],
)
def test_restart_policies(launch: Make, policy: str, number: signal.Signals, restarts: int) -> None:
    one = launch().live("restart", policy=policy).start()
    one.until_state("ready")
    os.kill(one.engine_pid(), number)
    if restarts:
        until("a restart", lambda: one.record()["restarts"] == restarts)
    else:
        one.until_gone()
        assert one.record()["restarts"] == 0
        assert f"policy is {policy}" in one.record("exit.json")["hint"]


def test_a_hung_engine_is_failing_then_restarted(launch: Make, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    one = launch("--hang-file", str(hang)).live("health", timeout=0.2).start()
    first = one.until_state("ready")["engine"]["pid"]
    hang.touch()
    one.until_state("failing")
    assert one.engine_pid() == first
    until("the hung engine is killed", lambda: not is_alive(first))
    hang.unlink()
    until("a new ready engine", lambda: one.record()["restarts"] == 1 and one.record()["state"] == "ready")
    assert one.record("exit.json")["cause"] == "hung"


def test_a_failing_engine_that_answers_again_is_ready_again(launch: Make, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    one = launch("--hang-file", str(hang)).live("health", timeout=0.5, failures=2).start()
    first = one.until_state("ready")["engine"]["pid"]
    hang.touch()
    one.until_state("failing")
    hang.unlink()
    one.until_state("ready")
    assert one.engine_pid() == first
    assert one.record()["restarts"] == 0


def test_a_busy_engine_that_misses_its_probes_stays_ready(launch: Make, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    one = (
        launch("--slow-health-file", str(slow)).live("health", timeout=0.2, interval=0.1, failures=2).start()
    )
    first = one.until_state("ready")["engine"]["pid"]
    slow.touch()
    states = set()

    def has_missed_often() -> bool:
        one.chat()
        states.add(one.record()["state"])
        return one.log().count("slow health") > 8

    until("more misses than make an engine hung", has_missed_often)
    assert states == {"ready"}
    assert one.engine_pid() == first
    assert one.record()["message"] == "no answer within 0.2 s"


def test_a_stalled_engine_whose_health_says_ok_is_found_and_restarted(launch: Make, tmp_path: Path) -> None:
    stall = tmp_path / "stall"
    one = launch("--stall-file", str(stall)).live("health", timeout=0.2, interval=0.1, failures=1).start()
    first = one.until_state("ready")["engine"]["pid"]
    stall.touch()
    with pytest.raises(OSError, match="timed out"):
        one.chat(timeout=0.2)
    until("the stalled engine is killed", lambda: not is_alive(first))
    stall.unlink()
    until("a restart", lambda: one.record()["restarts"] == 1)
    assert one.record("exit.json")["cause"] == "hung"


def test_an_engine_that_refuses_everything_while_its_health_says_ok_is_restarted(
    launch: Make, tmp_path: Path
) -> None:
    refuse = tmp_path / "refuse"
    one = launch("--refuse-file", str(refuse)).live("health", interval=0.05, failures=1).start()
    first = one.until_state("ready")["engine"]["pid"]
    refuse.touch()
    until("it is killed", lambda: not is_alive(first))
    refuse.unlink()
    until("a restart", lambda: one.record()["restarts"] == 1)
    assert "answered 500" in one.record("exit.json")["hint"]


def test_an_engine_that_sleeps_is_not_asked_for_tokens(launch: Make) -> None:
    one = launch().live("health", interval=0.05, failures=1).start()
    first = one.until_state("ready")["engine"]["pid"]
    request = urllib.request.Request(f"http://127.0.0.1:{one.port}/sleep?level=1", data=b"")
    urllib.request.urlopen(request, timeout=30).close()
    asked = one.log().count("POST /v1")
    until("canaries that were due", lambda: one.log().count("GET /is_sleeping") > 1)
    assert one.log().count("POST /v1") == asked
    assert one.engine_pid() == first


def test_an_idle_engine_is_seldom_asked_for_tokens(launch: Make) -> None:
    one = launch().live("health", interval=0.05, failures=1).start()
    one.until_state("ready")
    until("many probes", lambda: one.log().count("GET /health") > 12)
    assert one.log().count("POST ") == 1


def test_without_a_chat_template_a_completion_makes_it_ready(launch: Make) -> None:
    one = launch("--no-chat").start()
    one.until_state("ready")
    assert "POST /v1/completions" in one.log()


def test_a_hung_engine_does_not_delay_a_stop(launch: Make, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    one = launch("--hang-file", str(hang)).live("health", timeout=3600.0, interval=0.05).start()
    one.until_state("ready")
    hang.touch()
    until("a probe that hangs", lambda: hang.exists())
    one.signal()
    one.until_gone()
    assert one.record("exit.json")["cause"] == "stopped"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"argv": []}, "order.argv: expected a list of texts"),
        ({"mark": None}, "the order has no mark"),
        ({"live": {}}, "order.live.health: expected an object, got nothing"),
        ({"directory": "relative"}, "order.directory: expected an absolute path"),
        ({"directory": "/proc/no"}, "/proc/no"),
        ({"probe": {"url": "https://x", "model": "m"}}, "order.probe.url: expected http://HOST:PORT"),
        ({"env": {"TOKEN": 5}}, "order.env: expected texts by name"),
    ],
)
def test_a_bad_order_is_refused_with_a_reason(launch: Make, change: dict[str, object], message: str) -> None:
    one = launch()
    with pytest.raises(OSError, match=message):
        start(one.order | change)
    assert marked(one.id) == {}
