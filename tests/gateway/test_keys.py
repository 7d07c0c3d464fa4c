"""A gateway with API keys answers nobody without one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.gateway.world import REPOSITORY, FakeEngine, Gateway, backend, free_port, wait_for


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("closed")
    (folder / "keys").write_text("from-file\n", encoding="utf-8")
    options = ["--api-key-file", str(folder / "keys"), "--host", "0.0.0.0"]
    with Gateway(folder / "home", *options, environ={"SAGE_API_KEYS": "k1,k2"}) as gateway:
        gateway.client.headers["authorization"] = "Bearer k2"
        gateway.serve({"fake": [backend(engine.url)]})
        yield gateway


@pytest.mark.parametrize("path", ["/v1/models", "/ready", "/docs", "/schema/openapi.json", "/nope"])
@pytest.mark.parametrize("given", ["", "Bearer wrong", "k1"])
def test_refused(closed: Gateway, path: str, given: str) -> None:
    reply = closed.client.get(path, headers={"authorization": given})
    assert reply.status_code == 401
    error = reply.json()["error"]
    assert (error["code"], error["type"], error["src"]) == ("invalid_api_key", "authentication_error", "sage")
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["k1", "k2", "from-file"])
def test_allowed(closed: Gateway, key: str) -> None:
    with openai.OpenAI(base_url=f"{closed.url}/v1", api_key=key) as client:
        assert client.models.list().data[0].id == "fake"
    anthropic = {"authorization": "", "x-api-key": key}
    body = {"model": "fake"}
    assert closed.client.post("/v1/messages", json=body, headers=anthropic).status_code == 200


def test_the_key_stays_here(closed: Gateway) -> None:
    reply = closed.chat()
    assert reply.status_code == 200
    assert "k2" not in str(reply.json()["echo"]["headers"])
    assert "k2" not in "".join(closed.output)


def test_health_is_open(closed: Gateway) -> None:
    assert closed.client.get("/health", headers={"authorization": ""}).status_code == 200


def test_no_cors(closed: Gateway) -> None:
    reply = closed.client.get("/v1/models", headers={"origin": "https://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_refuses_to_be_open_to_all(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "--home", str(tmp_path), "--host", "0.0.0.0", "--port"]
    ended = subprocess.run(
        [*command, str(free_port())], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the gateway does not listen on 0.0.0.0 without API keys")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_an_unreadable_key_file_is_one_clear_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "--home", str(tmp_path), "--api-key-file", "/nowhere/keys"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "error: cannot read the API key file /nowhere/keys: No such file or directory\n"


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    with Gateway(tmp_path, "--workers", "2") as gateway:
        records = tmp_path / "run" / "gateway"
        wait_for(lambda: len(list(records.glob("*.json"))) == 2, "both workers keep a record")
        gateway.process.kill()
        wait_for(lambda: not list(records.glob("*.json")), "both workers end by themselves")
