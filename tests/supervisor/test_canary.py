"""A question that an engine must answer rightly: at its start, after a restart, and when it changes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from sage_reconcile.supervisor.records import write_atomic
from tests.supervisor.conftest import Launch, until

Make = Callable[..., Launch]

PARIS = {"prompt": "What is the capital of France?", "expect": "paris", "max_tokens": 8}
BERLIN = {**PARIS, "expect": "Berlin"}
NONSENSE = "Le le le\nla \x1b[31m" + "la " * 100


def retune(one: Launch, canary: object) -> None:
    """Gives the running supervisor another canary."""
    one.order["live"]["health"]["canary"] = canary
    write_atomic(one.directory / "live.json", json.dumps(one.order["live"]).encode())


def test_the_right_answer_is_ready_whatever_its_letters(launch: Make) -> None:
    one = launch().live("health", canary=PARIS).start()
    assert one.until_state("ready", "exited")["state"] == "ready"
    assert one.record()["live"]["health"]["canary"] == PARIS


def test_nonsense_ends_the_launch_and_says_what_came_on_one_line(launch: Make) -> None:
    one = launch("--answer", NONSENSE).live("health", canary=PARIS).start()
    one.until_gone()
    cause = one.record("exit.json")["cause"]
    assert cause.startswith('the canary was answered "Le le le la \N{REPLACEMENT CHARACTER}[31mla la')
    assert cause.endswith('\N{HORIZONTAL ELLIPSIS}", which lacks "paris"')
    assert len(cause) < 200
    assert "\n" not in cause
    assert "dtype" in one.record("exit.json")["hint"]


def test_an_engine_without_a_chat_template_is_asked_to_complete(launch: Make) -> None:
    one = launch("--no-chat", "--answer", "It is Rome.").live("health", canary=PARIS).start()
    one.until_gone()
    assert one.record("exit.json")["cause"] == 'the canary was answered "It is Rome.", which lacks "paris"'


def test_it_is_asked_again_after_a_restart(launch: Make, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    one = launch("--answer-file", str(answer)).live("health", canary=PARIS).live("restart", max_attempts=1)
    one.start().until_state("ready")
    answer.write_text("Rome")
    os.kill(one.engine_pid(), signal.SIGKILL)
    one.until_gone()
    assert 'the canary was answered "Rome", which lacks "paris"' in one.record()["message"]


def test_a_new_one_is_asked_of_the_running_engine_which_fails_but_never_ends(
    launch: Make, tmp_path: Path
) -> None:
    answer = tmp_path / "answer"
    one = launch("--answer-file", str(answer)).start()
    one.until_state("ready")
    pid = one.engine_pid()
    retune(one, BERLIN)
    record = one.until_state("failing")
    assert record["message"].endswith('"The capital of France is Paris.", which lacks "Berlin"')
    answer.write_text("Berlin, some say")
    one.until_state("ready")
    answer.unlink()
    retune(one, PARIS)
    until("the new canary", lambda: one.record()["live"]["health"]["canary"] == PARIS)
    assert one.until_state("ready")["message"] == ""
    assert one.engine_pid() == pid


def test_one_that_is_taken_back_lets_the_engine_serve(launch: Make) -> None:
    one = launch().start()
    one.until_state("ready")
    retune(one, BERLIN)
    one.until_state("failing")
    retune(one, None)
    one.until_state("ready")
