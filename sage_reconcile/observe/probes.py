"""Asking an engine over HTTP: does it really answer, does it sleep.

Imported only where there is something to ask: httpx takes longer to import than a plan takes to make.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx

from sage_reconcile.model.desired import ProbeKind
from sage_reconcile.supervisor.answers import fault_of_generation

NO_ANSWER = "no answer within {:g} s"
MESSAGE_LIMIT = 300
# What engines answer to a chat request when they can only complete text: no such path, no chat template.
NOT_A_CHAT = frozenset({400, 404, 405, 422, 501})


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether the engine answered a real request, else why not; `is_silent`: it gave no answer in time,
    `has_answered`: it gave one, which was not good."""

    ok: bool
    message: str = ""
    is_silent: bool = False
    has_answered: bool = True


async def probe_ready(
    url: str,
    model: str,
    probe: ProbeKind,
    path: str,
    timeout: float,
    headers: Mapping[str, str] | None = None,
) -> ProbeResult:
    """One real request in `timeout` seconds: a token (GENERATE), a vector (EMBED), a 2xx at `path` (HTTP).

    HTTP 200 at a health path proves little: vLLM gives it while asleep and while its core is about to fail.
    """
    try:
        async with _client(url, timeout, headers) as client:
            if probe is ProbeKind.HTTP:
                return _is_success(await client.get(path), path)
            if probe is ProbeKind.EMBED:
                return await _embeds(client, model)
            return await _generates(client, model)
    except TimeoutError:
        return ProbeResult(False, NO_ANSWER.format(timeout), is_silent=True, has_answered=False)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return ProbeResult(False, _reason(error), has_answered=False)


async def is_sleeping(url: str, timeout: float) -> bool | None:
    """Whether the engine gave its memory back (vLLM's sleep mode); None when it does not say."""
    try:
        async with _client(url, timeout) as client:
            body = _json(await client.get("/is_sleeping"))
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError):
        return None
    said = body.get("is_sleeping") if isinstance(body, dict) else None
    return said if isinstance(said, bool) else None


async def list_models(
    url: str, timeout: float, headers: Mapping[str, str] | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """The status and the entries of /v1/models; status 0 where nothing answers in time."""
    try:
        async with _client(url, timeout, headers) as client:
            reply = await client.get("/v1/models")
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError):
        return 0, []
    body = _json(reply) if reply.is_success else None
    entries = body.get("data") if isinstance(body, dict) else None
    found = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    return reply.status_code, [one for one in found if isinstance(one.get("id"), str) and one["id"]]


@asynccontextmanager
async def _client(
    url: str,
    timeout: float,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client for one probe. Proxies of the environment are left aside, and `timeout` is over all in all."""
    verify = _tls() if url.startswith("https:") else False
    async with (
        asyncio.timeout(timeout),
        httpx.AsyncClient(
            base_url=url, headers=headers, timeout=None, verify=verify, trust_env=False
        ) as client,
    ):
        yield client


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _generates(client: httpx.AsyncClient, model: str) -> ProbeResult:
    chat = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    reply = await client.post("/v1/chat/completions", json=chat)
    result = _has_choice(reply, "/v1/chat/completions")
    if result.ok or reply.status_code not in NOT_A_CHAT:
        return result
    text = {"model": model, "max_tokens": 1, "prompt": "Hi"}
    completion = _has_choice(await client.post("/v1/completions", json=text), "/v1/completions")
    return completion if completion.ok else result


def _has_choice(reply: httpx.Response, path: str) -> ProbeResult:
    if not reply.is_success:
        return _is_success(reply, path)
    fault = fault_of_generation(_json(reply))
    if not fault:
        return ProbeResult(True)
    return ProbeResult(False, f"{path} answered {reply.status_code} without {fault}")


async def _embeds(client: httpx.AsyncClient, model: str) -> ProbeResult:
    path = "/v1/embeddings"
    reply = await client.post(path, json={"model": model, "input": "ready?"})
    if not reply.is_success:
        return _is_success(reply, path)
    try:
        has_vector = bool(_json(reply)["data"][0]["embedding"])
    except (KeyError, IndexError, TypeError):
        has_vector = False
    if has_vector:
        return ProbeResult(True)
    return ProbeResult(False, f"{path} answered {reply.status_code} without a vector")


def _is_success(reply: httpx.Response, path: str) -> ProbeResult:
    if reply.is_success:
        return ProbeResult(True)
    said = _said(reply)
    return ProbeResult(False, f"{path} answered {reply.status_code}" + (f": {said}" if said else ""))


def _said(reply: httpx.Response) -> str:
    """The engine's own words: OpenAI's {"error": {"message"}}, FastAPI's {"detail"}, or the text."""
    body = _json(reply)
    words: Any = body
    if isinstance(body, dict):
        error = body.get("error", body)
        words = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    if body is None:
        words = reply.text
    return " ".join(str(words or "").split())[:MESSAGE_LIMIT]


def _json(reply: httpx.Response) -> Any:
    try:
        return reply.json()
    except (ValueError, RecursionError):
        return None


def _reason(error: Exception) -> str:
    said = str(error) or type(error).__name__
    if _is_refusal(error):
        return "connection refused"
    return f"nothing accepts connections there ({said})" if isinstance(error, httpx.ConnectError) else said


def _is_refusal(error: BaseException | None) -> bool:
    """httpx tells only that no connection came about; the reason is the cause of a cause."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_refusal, error.exceptions))
    if error is None or isinstance(error, ConnectionRefusedError):
        return error is not None
    return _is_refusal(error.__cause__ or error.__context__)
