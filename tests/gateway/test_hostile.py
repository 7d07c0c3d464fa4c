"""Requests that nobody sends by accident: none reaches an engine's other paths, none costs much."""

import asyncio
import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from gateway.keys import Keys
from gateway.lane import Lane
from gateway.limited import MAX_HEAD_BYTES
from gateway.paths import is_ambiguous
from gateway.protocol import GatewayProtocol
from gateway.settings import Settings
from tests.gateway.world import DEADLINE_S, REPOSITORY, Gateway, RecordingEngine, Script, backend


@pytest.fixture(autouse=True)
def served(gateway: Gateway, recorder: RecordingEngine) -> None:
    one = [backend(recorder.url, model="m")]
    gateway.serve({"m": one, "alias": one})


def raw(gateway: Gateway, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to these bytes, read until the gateway closes the connection."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE_S) as connection:
        received = b""
        try:
            connection.sendall(request)
            while data := connection.recv(65536):
                received += data
        except (ConnectionResetError, BrokenPipeError):
            received += rest_of(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def rest_of(connection: socket.socket) -> bytes:
    """What was answered before the connection was reset."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def post(target: str, body: bytes = b'{"model":"m"}', more: bytes = b"") -> bytes:
    length = str(len(body)).encode()
    head = b"POST " + target.encode("latin-1") + b" HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
    return head + more + b"content-type: application/json\r\ncontent-length: " + length + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "target",
    [
        "/v1/audio/../../collective_rpc?x=1",
        "/v1/audio/%2e%2e/%2E%2E/collective_rpc",
        "/v1/audio/..%2f..%2fcollective_rpc",
        "/v1/audio/..%5c..%5ccollective_rpc",
        "/v1/audio/%252e%252e/%252e%252e/collective_rpc",
        "/v1/audio/%25252e%25252e%25252fcollective_rpc",
        "/v1/audio/speech/../../../collective_rpc",
        "/v1/audio/./speech",
        "/v1//audio/speech",
        "//v1/audio/speech",
        "/v1/audio/..;/collective_rpc",
        "/v1/chat/completions/..",
        "/v1/load_lora_adapter",
        "/v1/%6coad_lora_adapter",
        "/v1/Unload_LoRA_adapter",
        "/v1/audio/collective_rpc",
        "/v1/internal/anything",
        "/v1/management/engines",
        "/audio/voices",
        "/sleep",
        "http://gateway/v1/audio/../../collective_rpc",
    ],
)
def test_no_other_path_of_an_engine_is_reached(
    gateway: Gateway, recorder: RecordingEngine, target: str
) -> None:
    status, body = raw(gateway, post(target))
    # Management is the gateway's own, and closed to a name that is not this host's.
    told = (403, "admin_key_required") if "management" in target else (404, "not_found")
    assert (status, json.loads(body)["error"]["code"]) == told
    assert recorder.requests == []


@pytest.mark.parametrize(
    "target", ["/v1/audio/voices?a=1", "/v1/images/generations", "/v1/any-thing/new_one"]
)
def test_whatever_names_a_model_below_v1_goes_on(
    gateway: Gateway, recorder: RecordingEngine, target: str
) -> None:
    assert raw(gateway, post(target))[0] == 200
    assert [request.path for request in recorder.requests] == [target]


@pytest.mark.parametrize("target", ["/v1/audio/speech?a=/../b", "/v1/audio/%73peech?a=/../b"])
def test_a_listed_path_is_asked_for_as_it_is_listed(
    gateway: Gateway, recorder: RecordingEngine, target: str
) -> None:
    assert raw(gateway, post(target))[0] == 200
    assert [request.path for request in recorder.requests] == ["/v1/audio/speech?a=/../b"]


@pytest.mark.parametrize("path", [b"/", b"/v1/models/org%2Fname", b"/v1/models/a..b", b"/v1/models/.a/b."])
def test_harmless_paths(path: bytes) -> None:
    assert not is_ambiguous(path)


def test_too_many_layers_are_not_undone() -> None:
    assert is_ambiguous(b"/a%" + b"25" * 50 + b"41")


@pytest.mark.parametrize("model", ["m", "alias"])
@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"model":"MODEL"}',
        b'{"model":"MODEL\xff"}',
        b'{"model":"MODEL","x":"\xff"}',
        b'{"model":"MODEL","x":1' + b"0" * 5000 + b"}",
        b'{"model":"\\ud800"}',
    ],
)
def test_bad_bodies(gateway: Gateway, recorder: RecordingEngine, body: bytes, model: str) -> None:
    status, reply = raw(gateway, post("/v1/completions", body.replace(b"MODEL", model.encode())))
    error = json.loads(reply)["error"]
    assert (status, error["type"], error["src"]) == (400, "invalid_request_error", "sage")
    assert recorder.requests == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/docs"])
def test_head_is_get_without_a_body(gateway: Gateway, path: str) -> None:
    asked, got = gateway.client.head(path), gateway.client.get(path)
    assert (asked.status_code, asked.headers["content-type"]) == (200, got.headers["content-type"])
    assert asked.headers["content-length"] == got.headers["content-length"]
    assert asked.content == b""


def test_head_of_what_is_not_there(gateway: Gateway) -> None:
    assert gateway.client.head("/nothing").status_code == 404
    assert gateway.client.head("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize("script", [Script(999), Script(600), Script(200, {"x-odd": "a\x01b"})])
def test_a_reply_that_is_not_http(gateway: Gateway, recorder: RecordingEngine, script: Script) -> None:
    recorder.script = script
    reply = gateway.chat("m")
    assert reply.status_code == 502
    assert reply.json()["error"]["src"] == "sage"


@pytest.mark.parametrize(
    "more",
    [
        b"x-large: " + b"a" * (8 << 20) + b"\r\n",
        b"x-large: " + b"a" * (MAX_HEAD_BYTES + 1) + b"\r\n",
        b"x-many: " + b"a" * 1000 + b"\r\n",
    ],
    ids=["8 MiB", "a little", "many"],
)
def test_a_large_head_is_refused(gateway: Gateway, recorder: RecordingEngine, more: bytes) -> None:
    lines = more * (100 if b"x-many" in more else 1)
    status, body = raw(gateway, post("/v1/completions", more=lines))
    assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")
    assert recorder.requests == []


def test_a_large_url_is_refused(gateway: Gateway) -> None:
    assert raw(gateway, post("/v1/completions?" + "a" * (MAX_HEAD_BYTES + 1)))[0] == 431


def test_a_header_without_end_is_not_kept(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx-large: ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"a" * (64 << 20))
    assert gateway.client.get("/health").status_code == 200


def test_trailers_without_end_are_not_kept(gateway: Gateway) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE_S) as connection:
        connection.sendall(head + b'd\r\n{"model":"m"}\r\n0\r\nx-large: ')
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"a" * (64 << 20))


def test_a_large_body_and_many_requests_on_a_connection_are_taken(
    gateway: Gateway, recorder: RecordingEngine
) -> None:
    body = {"model": "m", "prompt": "a" * (4 << 20)}
    for _ in range(3):
        reply = gateway.client.post("/v1/completions", json=body, headers={"x-fill": "a" * 60_000})
        assert reply.status_code == 200
    assert [len(request.body) > 4 << 20 for request in recorder.requests] == [True] * 3


def test_what_is_not_http_is_told_so(gateway: Gateway) -> None:
    status, body = raw(gateway, b"\x16\x03\x01 hello\r\n\r\n")
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_http")


class Hasty(GatewayProtocol):
    read_timeout_s = 0.05


async def _never(scope: object, receive: object, send: object) -> None:
    raise AssertionError("a half request is no request")


SLOW_BODY = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9000\r\n\r\n{"


@pytest.mark.parametrize("half", [b"", b"GET /health HTTP/1.1\r\nhost: a", SLOW_BODY])
def test_half_a_request_is_ended(half: bytes, tmp_path: Path) -> None:
    async def ask() -> bytes:
        lane = Lane(Settings(tmp_path), Keys(()))
        config = Config(_never, lifespan="off", log_config=None)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Hasty(config, ServerState(), {"lane": lane}), "127.0.0.1", 0
        )
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(half)
            answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
            writer.close()
            await writer.wait_closed()
        return answer

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 408 ")


def test_the_body_limit_of_the_environment(stack: ExitStack, tmp_path: Path) -> None:
    gateway = stack.enter_context(Gateway(tmp_path, environ={"SAGE_GATEWAY_MAX_BODY_MIB": "1"}))
    reply = gateway.client.post("/v1/completions", json={"model": "m", "prompt": "a" * (1 << 20)})
    assert reply.status_code == 413
    assert "larger than 1 MiB" in reply.json()["error"]["message"]
    assert "SAGE_GATEWAY_MAX_BODY_MIB" in reply.json()["error"]["message"]
    given = stack.enter_context(
        Gateway(tmp_path / "given", "--max-body-mib", "2", environ={"SAGE_GATEWAY_MAX_BODY_MIB": "1"})
    )
    assert given.client.post("/v1/completions", content=b" " * (1 << 21)).status_code == 400


@pytest.mark.parametrize("value", ["many", "0", "-1"])
def test_a_body_limit_that_is_none(tmp_path: Path, value: str) -> None:
    environ = {"SAGE_GATEWAY_MAX_BODY_MIB": value, "PATH": ""}
    command = [sys.executable, "-m", "gateway", "--home", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: SAGE_GATEWAY_MAX_BODY_MIB: ")
    assert "Traceback" not in ended.stderr
