"""The parts that need no process: restarts, vitals, probes against odd servers, live settings, redaction."""

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_reconcile.home import Home
from sage_reconcile.journal import read as read_journal
from sage_reconcile.supervisor import journal, tree
from sage_reconcile.supervisor.livefile import LiveFile
from sage_reconcile.supervisor.logfile import EngineLog
from sage_reconcile.supervisor.order import Health, OrderError, Restart, Target, parse, parse_live
from sage_reconcile.supervisor.probe import Client, Look, ask_ready, read_metrics
from sage_reconcile.supervisor.prober import Prober
from sage_reconcile.supervisor.redact import Redactor
from sage_reconcile.supervisor.restarts import Restarts
from sage_reconcile.supervisor.vitals import HUNG_FACTOR, ROUTINE, Vitals
from sage_reconcile.supervisor.watcher import Watcher
from tests.supervisor.conftest import LIVE, free_port, until

HEALTH = Health("generate", "/health", 10.0, 1.0, 1.0, 3)
GOOD = Look(True)
BAD = Look(False, "no answer within 1 s", is_silent=True)


def busy(tokens: float, is_ok: bool = True, running: float = 1.0) -> Look:
    return Look(is_ok, "", tokens, running)


# Restarts


@given(
    attempts=st.integers(0, 6),
    backoff=st.floats(0.0, 10.0),
    cap=st.floats(0.0, 100.0),
    was_ready=st.booleans(),
)
def test_never_more_attempts_nor_longer_waits_than_allowed(
    attempts: int, backoff: float, cap: float, was_ready: bool
) -> None:
    restarts = Restarts()
    settings = Restart("always", attempts, 100.0, backoff, cap)
    delays = [restarts.next_delay(0.0, was_ready, settings) for _ in range(attempts)]
    assert delays[:1] in ([], [0.0]), "the first comes at once"
    assert all(
        delay is not None and 0.0 <= delay <= min(cap, backoff * 2**n) for n, delay in enumerate(delays[1:])
    )
    assert restarts.next_delay(0.0, was_ready, settings) is None
    assert restarts.total == attempts


def test_attempts_leave_the_window_only_when_it_was_ready_in_between() -> None:
    settings = Restart("always", 2, 10.0, 1.0, 1.0)
    restarts = Restarts()
    assert [restarts.next_delay(at, False, settings) is None for at in (0, 20, 40)] == [False, False, True]
    assert restarts.next_delay(60, True, settings) is not None


def test_forgetting_gives_all_attempts_back() -> None:
    settings = Restart("always", 1, 1e9, 0.0, 0.0)
    restarts = Restarts()
    assert restarts.next_delay(0, True, settings) == 0.0
    assert restarts.next_delay(1, True, settings) is None
    restarts.forget()
    assert restarts.next_delay(2, True, settings) == 0.0


# Vitals


def test_misses_make_it_failing_and_then_hung() -> None:
    vitals = Vitals()
    states = [vitals.take(BAD, 3) for _ in range(3 * HUNG_FACTOR)]
    assert states == ["ready"] * 2 + ["failing"] * 9 + ["hung"]


def test_one_answer_forgives_all_misses() -> None:
    vitals = Vitals()
    assert [vitals.take(look, 2) for look in (BAD, BAD, GOOD, BAD, BAD)] == [
        "ready",
        "failing",
        "ready",
        "ready",
        "failing",
    ]


def test_moving_tokens_prove_work_behind_missed_probes() -> None:
    vitals = Vitals()
    vitals.take(busy(0), 1)
    assert all(vitals.take(busy(n, is_ok=False), 1) == "ready" for n in range(1, 50))
    assert vitals.take(busy(49, is_ok=False), 1) == "failing"


def test_requests_without_tokens_ask_for_a_canary_and_its_answer_settles_it() -> None:
    vitals = Vitals()
    for _ in range(4):
        vitals.take(busy(5), 3)
    assert vitals.wants_canary(3)
    assert vitals.take(busy(6), 3) == "ready"
    assert not vitals.wants_canary(3)


def test_a_canary_that_gets_no_answer_leads_to_hung() -> None:
    vitals = Vitals()
    for _ in range(4):
        vitals.take(busy(5), 3)
    states = []
    for _ in range(3 * HUNG_FACTOR):
        assert vitals.wants_canary(3)
        states.append(vitals.take(busy(5, is_ok=False), 3))
    assert states[-1] == "hung"


def test_a_canary_that_waits_in_vain_weighs_as_much_as_many_looks() -> None:
    vitals = Vitals()
    for _ in range(4):
        vitals.take(busy(5), 3)
    states = [vitals.take(busy(5, is_ok=False)._replace(is_silent=True), 3) for _ in range(3)]
    assert states == ["failing", "failing", "hung"]


def test_an_engine_that_only_refuses_is_found_by_a_canary() -> None:
    """/health says 200, no request is ever seen to run, and every one fails."""
    vitals = Vitals()
    looks = 0
    while not vitals.wants_canary(2):
        vitals.take(busy(5, running=0), 2)
        looks += 1
    assert looks == ROUTINE
    refused = busy(5, is_ok=False, running=0)
    states = [vitals.take(refused, 2) for _ in range(2 * HUNG_FACTOR)]
    assert states == ["ready"] + ["failing"] * 6 + ["hung"]


def test_a_canary_that_is_answered_ends_the_asking() -> None:
    vitals = Vitals()
    for _ in range(ROUTINE):
        vitals.take(busy(5, running=0), 2)
    assert vitals.take(busy(5, running=0), 2) == "ready"
    assert not vitals.wants_canary(2)


def test_without_counters_a_canary_that_waits_says_nothing() -> None:
    """It stands behind a long request, perhaps: such engines serve one at a time."""
    vitals = Vitals()
    for _ in range(ROUTINE):
        vitals.take(GOOD, 1)
    assert vitals.wants_canary(1)
    assert vitals.take(BAD, 1) == "ready"
    assert not vitals.wants_canary(1)


def test_an_idle_engine_never_stalls() -> None:
    vitals = Vitals()
    for _ in range(100):
        vitals.take(busy(5, running=0), 1)
    assert vitals.stalls == 0


def test_an_engine_without_counters_is_asked_for_them_once() -> None:
    vitals = Vitals()
    vitals.take(BAD, 3)
    assert vitals.wants_metrics
    vitals.take(GOOD, 3)
    assert not vitals.wants_metrics


# Probes against servers that are not what they should be


def read_request(connection: socket.socket) -> None:
    """All of it: closing with something unread would reset the connection and lose the answer."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (part := connection.recv(65536)):
            return
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    missing = int(found[1]) - len(body) if found else 0
    while missing > 0 and (part := connection.recv(65536)):
        missing -= len(part)


@pytest.fixture
def serve() -> Iterator[Callable[..., Client]]:
    """A server that answers every connection with these bytes, slowly if asked; gives a client of it."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []
    over = threading.Event()

    def answer(listener: socket.socket, data: bytes, pause: float) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                read_request(connection)
                pieces = [data[i : i + 1] for i in range(len(data))] if pause else [data]
                for piece in pieces:
                    try:
                        connection.sendall(piece)
                    except OSError:
                        break
                    if over.wait(pause):
                        return

    def make(data: bytes, pause: float = 0.0, timeout: float = 5.0, port: int = 0) -> Client:
        listener = socket.create_server(("127.0.0.1", port))
        listeners.append(listener)
        threads.append(threading.Thread(target=answer, args=(listener, data, pause)))
        threads[-1].start()
        return Client(Target("127.0.0.1", listener.getsockname()[1], "m", {}), timeout)

    yield make
    over.set()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "unreadable answer: no HTTP: SSH-2.0-OpenSSH_9.2"),
        (b"", "connection failed: closed without an answer"),
        (http(b"<html>"), "POST /v1/chat/completions answered 200 with JSON that cannot be read"),
        (http(b"[" * 100_000), "POST /v1/chat/completions answered 200 with JSON that cannot be read"),
        (http(b"{}"), "answered 200 without a choice"),
        (http(b"[]"), "answered 200 without a choice"),
        (http(b'{"choices": []}'), "answered 200 without a choice"),
        (http(b'{"choices": [null]}'), "answered 200 without a choice"),
        (http(b'{"choices": {"0": {}}}'), "answered 200 without a choice"),
        (http(b'{"choices": [{"message": {"content": ""}}]}'), "answered 200 without a token"),
        (
            http(b'{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 0}}'),
            "answered 200 without a token",
        ),
        (http(b"\x1b[2Jgone\x07", "500 Oops"), "answered 500: \ufffd[2Jgone\ufffd"),
        (http(b"loading\nstill", "503 Service Unavailable"), "answered 503: loading still"),
        (
            http(b"x", "404 Not Found"),
            "/v1/chat/completions answered 404: x; POST /v1/completions answered 404: x",
        ),
        (http(b'{"a": 1}')[:-3], "answered 200 with JSON that cannot be read"),
    ],
)
def test_odd_answers_are_not_ready_and_say_why(
    serve: Callable[..., Client], reply: bytes, message: str
) -> None:
    look = ask_ready(serve(reply), HEALTH)
    assert not look.is_ok
    assert message in look.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 1}}',
        b'{"choices": [{"message": {"content": "Hi"}}], "usage": {"completion_tokens": null}}',
        b'{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}',
        b'{"choices": [{"text": "Hi"}]}',
    ],
)
def test_one_token_is_ready(serve: Callable[..., Client], body: bytes) -> None:
    assert ask_ready(serve(http(body)), HEALTH) == GOOD


GOOD_BODY = b'{"choices": [{"text": "Hi"}]}'


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.0 200 OK\r\n\r\n" + GOOD_BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" + http(GOOD_BODY),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n8;x=y\r\n"
        + GOOD_BODY[:8]
        + b"\r\n15\r\n"
        + GOOD_BODY[8:]
        + b"\r\n0\r\n\r\n",
    ],
)
def test_every_way_to_end_a_body_is_understood(serve: Callable[..., Client], reply: bytes) -> None:
    assert ask_ready(serve(reply), HEALTH) == GOOD


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000, "unreadable answer: headers that do not end"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000, "unreadable answer: a line that does not end"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno\r\n", "unreadable answer: chunks that"),
        (b"HTTP/1.1 2xx OK\r\n\r\n", "unreadable answer: no HTTP: HTTP/1.1 2xx OK"),
    ],
)
def test_what_is_no_http_is_told(serve: Callable[..., Client], reply: bytes, message: str) -> None:
    assert message in ask_ready(serve(reply), HEALTH).message


@pytest.mark.parametrize("body", [b"{}", b'{"data": []}', b'{"data": [{"embedding": []}]}', b'{"data": [7]}'])
def test_an_empty_vector_is_not_ready(serve: Callable[..., Client], body: bytes) -> None:
    look = ask_ready(serve(http(body)), HEALTH._replace(probe="embed"))
    assert look == Look(False, "POST /v1/embeddings answered 200 without a vector")


def test_nothing_listens() -> None:
    client = Client(Target("127.0.0.1", free_port(), "m", {}), 5.0)
    assert ask_ready(client, HEALTH) == Look(False, "nothing listens on its port")


def test_an_answer_that_drips_for_ever_is_cut_off(
    serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sage_reconcile.supervisor.prober.GRACE", 0.1)
    target = serve(http(b"x" * 10_000), pause=0.05).target
    woken = threading.Event()
    prober = Prober(target, woken.set)
    before = threading.active_count()
    prober.ask(lambda client: ask_ready(client, HEALTH), 0.2)
    assert until("an answer", prober.answer) == Look(False, "no answer within 0.2 s", is_silent=True)
    until("the thread ends", lambda: threading.active_count() < before + 1)
    assert woken.is_set()
    assert prober.answer() is None


def test_a_dripping_engine_is_not_said_to_be_absent(serve: Callable[..., Client]) -> None:
    port = free_port()
    watcher = Watcher(Prober(Target("127.0.0.1", port, "m", {}), lambda: None))
    health = LIVE["health"] | {"startup_timeout": 2.0}
    live = parse_live({**LIVE, "health": health, "drain": 1.0})

    def says(text: str) -> bool:
        watcher.step(live)
        return text in watcher.message

    until("a refusal", lambda: says("nothing listens on its port"))
    serve(http(b"x" * 10_000), pause=0.05, port=port)
    until("the end of its time", lambda: says("") and watcher.state == "late")
    assert re.fullmatch(r"no answer within [\d.]+ s", watcher.message)


def test_metrics_of_several_engines_and_labels_with_spaces(serve: Callable[..., Client]) -> None:
    body = b"""# HELP vllm:generation_tokens_total Number of generation tokens.
vllm:generation_tokens_total{model_name="a b",engine="0"} 12.0
vllm:generation_tokens_total{model_name="a b",engine="1"} 3.0 1395066363000
vllm:prompt_tokens_total{model_name="a"} 1e2
vllm:generation_tokens_created{model_name="a"} 1.7e9
vllm:request_success_total{finished_reason="stop"} 5.0
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_running{engine="1"} NaN_is_not_here
broken line
"""
    assert read_metrics(serve(http(body))) == (115.0, 2.0)
    cache = b"vllm:generation_tokens_total{} 12.0\nvllm:kv_cache_usage_perc{} 0.25\n"
    assert read_metrics(serve(http(cache))) == (12.25, None), "a long prompt is read, which fills the cache"
    assert read_metrics(serve(http(b"up 1\n"))) == (None, None)
    assert read_metrics(serve(http(b"", "404 Not Found"))) == (None, None)


# Order, live settings, redaction


def test_live_settings_round_trip() -> None:
    plain = {**LIVE, "drain": 3.0}
    assert parse_live(plain).plain() == plain


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("health", {"failures": 0}, "live.health.failures: expected a whole number of at least 1, got 0"),
        ("health", {"interval": 0}, "live.health.interval: expected a number of at least 0.05, got 0"),
        ("health", {"timeout": float("nan")}, "live.health.timeout: expected a number"),
        ("health", {"timeout": True}, "live.health.timeout: expected a number"),
        ("health", {"probe": "ping"}, "live.health.probe: expected one of generate, embed, http, got 'ping'"),
        (
            "restart",
            {"policy": None},
            "live.restart.policy: expected one of always, on-failure, never, got nothing",
        ),
    ],
)
def test_bad_live_settings_name_the_field(part: str, change: dict[str, object], message: str) -> None:
    plain = {**LIVE, "drain": 3.0, part: LIVE[part] | change}
    with pytest.raises(OrderError, match=message):
        parse_live(plain)


def test_half_an_order_is_refused() -> None:
    with pytest.raises(OrderError, match="not whole JSON"):
        parse(b'{"mark": {"launch"')


def test_a_live_file_is_read_once_per_change(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    file = LiveFile(path, parse_live({**LIVE, "drain": 1.0}))
    assert file.poll() == ""
    path.write_text("{")
    assert "not taken" not in file.poll()[:3]
    assert file.poll() == ""
    path.write_text(json.dumps({**LIVE, "drain": 2.0}))
    assert file.poll() == ""
    assert file.live.drain == 2.0
    path.unlink()
    assert file.poll() == ""
    assert file.live.drain == 2.0


def test_a_pipe_in_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    file = LiveFile(tmp_path / "live.json", parse_live({**LIVE, "drain": 1.0}))
    os.mkfifo(tmp_path / "live.json")
    assert file.poll() == "live.json is not taken: it is not a plain file"
    assert file.poll() == ""
    pipe = tmp_path / journal.NAME
    os.mkfifo(pipe)
    journal.append(str(tmp_path), "ready", "demo/a#0", "")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    journal.append(str(tmp_path), "ready", "demo/a#0", "")
    with open(reader, "rb") as end:
        assert not end.read(), "nothing is written to whoever reads the pipe"
    assert list(read_journal(Home(tmp_path))) == []
    os.mkfifo(tmp_path / "engine.log")
    EngineLog(tmp_path, 1 << 20, 1).write(b"output\n")


def test_only_events_are_read(tmp_path: Path) -> None:
    (tmp_path / journal.NAME).write_text('{"kind": "a"}\n[]\n' + "[" * 100_000 + '\n{"kind": "b"}\n{"ki')
    assert list(read_journal(Home(tmp_path))) == [{"kind": "a"}, {"kind": "b"}]


def test_live_settings_nested_without_end_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    path.write_text("[" * 100_000)
    file = LiveFile(path, parse_live({**LIVE, "drain": 1.0}))
    assert file.poll() == "live.json is not taken: it is nested too deeply"
    assert file.live.drain == 1.0


def test_values_that_are_declared_secret_are_hidden_whatever_their_name() -> None:
    redactor = Redactor([("PLAIN", "plain-value"), ("HOME", "/home/user")], secrets=("PLAIN",))
    assert redactor.clean("plain-value in /home/user") == "*** in /home/user"


def test_secrets_are_hidden_and_paths_are_not() -> None:
    redactor = Redactor(
        [
            ("HF_TOKEN", "hf_abcdef"),
            ("API_KEY", "hf_abcdef-longer"),
            ("Authorization", "Bearer sk-123456"),
            ("HOME", "/home/user"),
            ("KEY_COUNT", "8"),
        ],
        ["engine", "--api-key", "opt-secret1", "--hf-token=opt-secret2", "--tokenizer", "/home/tokenizer"],
    )
    text = "8 of /home/user: hf_abcdef-longer hf_abcdef 'Bearer sk-123456' key=sk-123456"
    assert redactor.clean(text) == "8 of /home/user: *** *** '***' key=***"
    assert redactor.clean("opt-secret1 opt-secret2 /home/tokenizer") == "*** *** /home/tokenizer"


# Processes


def test_a_zombie_is_not_alive() -> None:
    """Where init reaps late or never, a killed supervisor stays one: its end is not to be waited for."""
    process = subprocess.Popen(["/bin/sleep", "600"])
    start = tree.started(process.pid)
    assert tree.is_alive(process.pid)
    assert tree.is_running(process.pid, start)
    assert not tree.is_running(process.pid, start - 60.0), "another one had this id before"
    process.kill()
    until("it is a zombie", lambda: not tree.is_alive(process.pid))
    assert os.path.exists(f"/proc/{process.pid}")
    assert not tree.is_running(process.pid, start)
    process.wait()
    assert not tree.is_alive(process.pid)
