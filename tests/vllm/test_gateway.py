"""The gateway in front of a real vLLM: what passes, what does not, and what a client that leaves stops."""

import json
import re
import socket
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.bench.vllm import Load, serve
from tests.vllm.world import MODEL, QUESTION, Places, Served
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

CHAT = "/v1/chat/completions"
# Greedy, so that two answers are the same.
ASKED = {"messages": QUESTION, "temperature": 0, "max_tokens": 16}
SCHEMA = {
    "type": "object",
    "properties": {
        "capital": {"type": "string", "maxLength": 12},
        "rivers": {"type": "integer", "maximum": 9},
    },
    "required": ["capital", "rivers"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}},
    },
}
CALLED = {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
# Name -> path, body without the model, status.
REQUESTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "logprobs": (CHAT, {**ASKED, "logprobs": True, "top_logprobs": 3}, 200),
    "tools that are not called": (CHAT, {**ASKED, "tools": [WEATHER], "tool_choice": "none"}, 200),
    "a tool that is called": (CHAT, {**ASKED, **CALLED, "max_tokens": 48}, 200),
    "a tool that is called, as a stream": (CHAT, {**ASKED, **CALLED, **STREAM, "max_tokens": 48}, 200),
    "a schema": (
        CHAT,
        {
            **ASKED,
            "max_tokens": 64,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        },
        200,
    ),
    "stop": (CHAT, {**ASKED, "stop": [" France"]}, 200),
    "n and seed": (CHAT, {**ASKED, "temperature": 1, "n": 2, "seed": 7}, 200),
    "a stream with usage": (CHAT, {**ASKED, **STREAM}, 200),
    "a batch": (f"{CHAT}/batch", {**ASKED, "messages": [QUESTION, QUESTION]}, 200),
    "completions": (
        "/v1/completions",
        {"prompt": "The capital of France", "temperature": 0, "max_tokens": 6, "echo": True, "logprobs": 2},
        200,
    ),
    "tokenize": ("/tokenize", {"prompt": "Zürich 東京"}, 200),
    "detokenize": ("/detokenize", {"tokens": [504, 3575, 282]}, 200),
    "responses": ("/v1/responses", {"input": "Hi", "temperature": 0, "max_output_tokens": 8}, 200),
    "responses, a stream": (
        "/v1/responses",
        {"input": "Hi", "temperature": 0, "max_output_tokens": 8, "stream": True},
        200,
    ),
    "messages": ("/v1/messages", ASKED, 200),
    "messages, a stream": ("/v1/messages", {**ASKED, "stream": True}, 200),
    "tokens of messages": ("/v1/messages/count_tokens", {"messages": QUESTION}, 200),
    "a prompt that is too long": (CHAT, {"messages": [{"role": "user", "content": "far " * 2000}]}, 400),
    "a field that is wrong": (CHAT, {**ASKED, "temperature": -1}, 400),
    "a path that it lacks": ("/v1/embeddings", {"input": "Hi"}, 404),
}
# What vLLM makes anew for each reply: ids by their field or their prefix, and times.
ANEW = re.compile(
    rb'"(?:id|item_id|request_id)":"[^"]*"|"(?:created|created_at|completed_at)":[0-9.]+'
    rb'|"(?:chatcmpl|resp|msg|call)[-_][^"]*"'
)
# Many more tokens than are made before the client has left.
LONG = {"model": "france", "messages": QUESTION, "ignore_eos": True, "max_tokens": 900}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_reply_is_what_vllm_says(name: str, served: Served) -> None:
    path, body, status = REQUESTS[name]
    with httpx.Client(timeout=120.0, trust_env=False) as client:
        direct = client.post(served.engine + path, json={"model": MODEL, **body})
        passed = client.post(served.gateway + path, json={"model": "france", **body})
    assert (direct.status_code, passed.status_code) == (status, status), (direct.text, passed.text)
    assert ANEW.sub(b"*", passed.content) == ANEW.sub(b"*", direct.content)
    added = {"x-sage-src": "engine", "x-request-id": passed.headers["x-request-id"]}
    assert _lasting(passed.headers) == _lasting(direct.headers) | added


def test_the_id_of_a_request_is_in_its_reply(served: Served) -> None:
    headers = {"x-request-id": "a-client-s-own"}
    reply = httpx.post(
        f"{served.gateway}{CHAT}", json={"model": "chat", **ASKED}, headers=headers, timeout=60.0
    )
    assert reply.json()["id"] == "chatcmpl-a-client-s-own"


@pytest.mark.parametrize("is_stream", [True, False], ids=["in a stream", "before the first byte"])
def test_vllm_stops_when_the_client_leaves(is_stream: bool, served: Served) -> None:
    before = served.metric("generation_tokens_total")
    body = json.dumps({**LONG, "stream": is_stream}).encode()
    gateway = urlsplit(served.gateway)
    with closing(socket.create_connection((gateway.hostname, gateway.port), timeout=60.0)) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: sage\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if is_stream:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
        wait_until(lambda: served.metric("generation_tokens_total") > before, "vLLM generates")
        assert served.running() == 1
    wait_until(lambda: not served.running(), "vLLM has nothing to do any more")
    made = served.metric("generation_tokens_total") - before
    assert 0 < made < LONG["max_tokens"] // 2  # type: ignore[operator]


def test_what_only_an_administrator_may_do_never_reaches_it(served: Served) -> None:
    offered = httpx.get(f"{served.engine}/openapi.json", timeout=60.0).json()["paths"]
    own = {"/health", "/metrics", "/v1/models"}
    with httpx.Client(base_url=served.gateway, timeout=60.0, trust_env=False) as client:
        for path in ("/sleep", "/wake_up", "/collective_rpc", "/server_info", "/v1/load_lora_adapter"):
            assert path in offered, "this vLLM has what must not be reached"
        reached = set()
        for path, methods in offered.items():
            for method in methods:
                body = {"json": {"model": "france"}} if method == "post" else {}
                reply = client.request(method, re.sub(r"{.*?}", "one", path), **body)  # type: ignore[arg-type]
                if reply.headers.get("x-sage-src") == "engine":
                    reached.add(path)
                elif path not in own:
                    assert (reply.status_code, reply.json()["error"]["src"]) == (404, "sage"), path
    assert reached == {
        "/tokenize",
        "/detokenize",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/responses/{response_id}/cancel",
        "/v1/systemone",
        "/generative_scoring",
    }


def test_the_load_client_of_vllm_runs_through_it(served: Served, places: Places, tmp_path: Path) -> None:
    told = serve(places, served.gateway, "france", Load(prompts=6, output_tokens=8), tmp_path / "result.json")
    assert (told["completed"], told["failed"], told["total_output_tokens"]) == (6, 0, 48)


def _lasting(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ("date", "content-length")}
