"""Pages of other origins: nothing by default, what the stack file lists if it lists something."""

from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.gateway.world import FakeEngine, Gateway, backend

PAGE = {"origin": "https://ui.example"}


def asked_before(gateway: Gateway) -> httpx.Response:
    headers = {
        **PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    return gateway.client.options("/v1/chat/completions", headers=headers)


def chat(gateway: Gateway, **headers: str) -> httpx.Response:
    return gateway.client.post("/v1/chat/completions", json={"model": "fake"}, headers=headers)


def test_none_by_default(gateway: Gateway, engine: FakeEngine) -> None:
    gateway.serve({"fake": [backend(engine.url)]})
    replies = [chat(gateway, **PAGE), gateway.client.get("/v1/models", headers=PAGE), asked_before(gateway)]
    assert not [name for reply in replies for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("origins", "allowed"), [("https://a.example,https://ui.example", "https://ui.example"), ("*", "*")]
)
def test_those_that_are_listed(
    stack: ExitStack, tmp_path: Path, engine: FakeEngine, origins: str, allowed: str
) -> None:
    environ = {"SAGE_GATEWAY_CORS": origins, "SAGE_API_KEYS": "sk-1"}
    gateway = stack.enter_context(Gateway(tmp_path, environ=environ))
    key = {"authorization": "Bearer sk-1"}
    gateway.client.headers.update(key)
    gateway.serve({"fake": [backend(engine.url)]})
    before = asked_before(gateway)
    assert before.status_code == 204
    assert before.headers["access-control-allow-headers"] == "authorization,content-type"
    for reply in (before, chat(gateway, **PAGE), gateway.client.get("/v1/models", headers=PAGE)):
        assert reply.headers["access-control-allow-origin"] == allowed
        assert "access-control-allow-credentials" not in reply.headers
    other = chat(gateway, origin="https://evil.example").headers.get("access-control-allow-origin")
    assert other == ("*" if allowed == "*" else None)


def test_before_a_request_no_key_is_asked_for(stack: ExitStack, tmp_path: Path) -> None:
    environ = {"SAGE_GATEWAY_CORS": "https://ui.example", "SAGE_API_KEYS": "sk-1"}
    gateway = stack.enter_context(Gateway(tmp_path, environ=environ))
    assert asked_before(gateway).status_code == 204
    refused = gateway.client.get("/v1/models", headers=PAGE)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE["origin"])
