import asyncio
import socket
from typing import Any

import pytest

from sage_reconcile.model.desired import ProbeKind
from sage_reconcile.observe.connect import refuses
from sage_reconcile.observe.probes import ProbeResult, is_sleeping, probe_ready
from tests.observe.launches import free_port
from tests.observe.scripted import HANGS, scripted

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
CHOICE = (200, {"choices": [{"index": 0, "finish_reason": "length"}]})
NO_TEMPLATE = (400, {"error": {"message": "you must provide a chat template"}})


def ready(url: str, probe: ProbeKind = ProbeKind.GENERATE, seconds: float = 5.0) -> ProbeResult:
    return asyncio.run(probe_ready(url, "m", probe, "/health", seconds))


@pytest.mark.parametrize(
    ("probe", "replies", "message"),
    [
        (ProbeKind.GENERATE, {CHAT: CHOICE}, ""),
        (ProbeKind.GENERATE, {CHAT: NO_TEMPLATE, TEXT: CHOICE}, ""),
        (ProbeKind.GENERATE, {TEXT: CHOICE}, ""),
        (ProbeKind.GENERATE, {CHAT: NO_TEMPLATE}, f"{CHAT} answered 400: you must provide a chat template"),
        (ProbeKind.GENERATE, {CHAT: (200, {"choices": []})}, f"{CHAT} answered 200 without a choice"),
        (ProbeKind.GENERATE, {CHAT: (200, {"choices": [None]})}, f"{CHAT} answered 200 without a choice"),
        (ProbeKind.GENERATE, {CHAT: (200, {"choices": [{}]})}, f"{CHAT} answered 200 without a token"),
        (ProbeKind.GENERATE, {CHAT: (200, "not json")}, f"{CHAT} answered 200 without a choice"),
        (ProbeKind.GENERATE, {CHAT: (200, "[" * 100_000)}, f"{CHAT} answered 200 without a choice"),
        (ProbeKind.GENERATE, {CHAT: (503, {"detail": "loading"})}, f"{CHAT} answered 503: loading"),
        (ProbeKind.GENERATE, {CHAT: (500, "out of\n luck")}, f"{CHAT} answered 500: out of luck"),
        (ProbeKind.GENERATE, {CHAT: (500, ""), TEXT: CHOICE}, f"{CHAT} answered 500"),
        (ProbeKind.GENERATE, {"/health": (200, {})}, f"{CHAT} answered 404: no such path"),
        (ProbeKind.EMBED, {EMBED: (200, {"data": [{"embedding": [0.5]}]})}, ""),
        (ProbeKind.EMBED, {EMBED: (200, {"data": [{"embedding": []}]})}, "without a vector"),
        (ProbeKind.EMBED, {EMBED: (200, {"data": []})}, "without a vector"),
        (ProbeKind.EMBED, {EMBED: (200, [1])}, "without a vector"),
        (ProbeKind.EMBED, {EMBED: (400, {"error": "bad model"})}, f"{EMBED} answered 400: bad model"),
        (ProbeKind.HTTP, {"/health": (204, "")}, ""),
        (ProbeKind.HTTP, {"/health": (302, "")}, "/health answered 302"),
        (ProbeKind.HTTP, {CHAT: CHOICE}, "/health answered 404: no such path"),
    ],
)
def test_ready_is_a_real_answer(probe: ProbeKind, replies: dict[str, Any], message: str) -> None:
    with scripted(replies) as server:
        result = ready(server.url, probe)
    assert result.ok is (message == "")
    assert result.message.endswith(message)
    assert not result.is_silent


def test_a_probe_asks_for_one_token_of_its_model_and_carries_the_headers() -> None:
    with scripted({CHAT: CHOICE}) as server:
        asyncio.run(probe_ready(server.url, "m", ProbeKind.GENERATE, "/", 5.0, {"authorization": "Bearer k"}))
    ((path, headers, body),) = server.seen
    assert (path, body["model"], body["max_tokens"]) == (CHAT, "m", 1)
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == "Bearer k"


def test_no_answer_in_time_is_told_from_a_refusal() -> None:
    with scripted({CHAT: HANGS}) as server:
        assert ready(server.url, seconds=0.2) == ProbeResult(
            False, "no answer within 0.2 s", is_silent=True, has_answered=False
        )
    result = ready(f"http://127.0.0.1:{free_port()}")
    assert result == ProbeResult(False, "connection refused", has_answered=False)


def test_the_time_is_for_both_requests_together() -> None:
    with scripted({CHAT: NO_TEMPLATE, TEXT: HANGS}) as server:
        assert ready(server.url, seconds=0.3).is_silent
    assert server.paths == [CHAT, TEXT]


def test_an_address_that_is_none_is_a_result_too() -> None:
    assert not ready("http://").ok
    assert not ready("ftp://127.0.0.1").ok


def test_proxies_of_the_environment_are_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with scripted({CHAT: CHOICE}) as server:
        assert ready(server.url).ok


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, {"is_sleeping": True}), True),
        ((200, {"is_sleeping": False}), False),
        ((200, {"is_sleeping": "yes"}), None),
        ((200, [True]), None),
        ((404, {}), None),
        (HANGS, None),
    ],
)
def test_sleep_is_believed_only_when_it_is_said(reply: Any, said: bool | None) -> None:
    with scripted({"/is_sleeping": reply}) as server:
        assert asyncio.run(is_sleeping(server.url, 0.5)) is said


def test_nobody_there_says_nothing_about_sleep() -> None:
    assert asyncio.run(is_sleeping(f"http://127.0.0.1:{free_port()}", 1.0)) is None


def test_only_a_refusal_is_a_refusal() -> None:
    with scripted({"/hang": HANGS}) as server:
        port = int(server.url.rpartition(":")[2])
        assert not asyncio.run(refuses("127.0.0.1", port, 5.0))
    assert asyncio.run(refuses("127.0.0.1", port, 5.0))


def test_a_listener_that_accepts_nothing_more_is_no_refusal() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        held = [socket.socket() for _ in range(3)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        assert not asyncio.run(refuses("127.0.0.1", port, 0.2))
        for one in held:
            one.close()
