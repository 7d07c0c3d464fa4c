"""Questions to an engine over HTTP: has it answered a real request, does it still, do its tokens move."""

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from sage_reconcile.supervisor import listener
from sage_reconcile.supervisor.answers import fault_of_generation, text_of
from sage_reconcile.supervisor.http import Unreadable, exchange, request_bytes
from sage_reconcile.supervisor.order import Canary, Health, Target

NOT_LISTENING = "nothing listens on its port"
ANSWER_SHOWN = 80
# What engines answer to a chat request when their model has no chat template, or they have no such path.
NO_CHAT = (400, 404, 405, 422)
# What moves only while an engine works: tokens, and the fill of the KV cache, which grows while a long prompt
# is read, before its first token.
PROGRESS = re.compile(r"^[\w:]*(?:tokens?(?:_\w+)?_total|(?:kv|gpu)_cache_usage_perc|token_usage)$")
RUNNING_GAUGE = re.compile(r"^[\w:]*(?:num_requests_running|num_running_reqs|requests_processing)$")


class Look(NamedTuple):
    """What one question gave. `tokens` (and whatever else moves with work) and `running` are None where the
    engine tells no such numbers; `is_silent` when there was no answer in time; `stranger` is who answered in
    place of the engine. `canary` is "right" or "wrong" where one was answered."""

    is_ok: bool
    message: str = ""
    tokens: float | None = None
    running: float | None = None
    is_silent: bool = False
    stranger: str = ""
    canary: str = ""


class Client:
    """One engine's HTTP; `timeout` (seconds) bounds all requests that this client makes together."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self._connection: socket.socket | None = None

    def abort(self) -> None:
        """From another thread: makes the request under way fail now, even one that drips bytes for ever."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def send(
        self, method: str, path: str, body: object = None, timeout: float = float("inf")
    ) -> tuple[int, bytes]:
        """Status and body. Raises OSError (TimeoutError among them) and Unreadable."""
        remaining = min(timeout, self.deadline - time.monotonic())
        if remaining <= 0:
            raise TimeoutError("timed out")
        host, port = self.target.host, self.target.port
        headers = {**self.target.headers, **({} if body is None else {"Content-Type": "application/json"})}
        data = None if body is None else json.dumps(body).encode()
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        deadline = time.monotonic() + remaining
        # As bytes: a text would be made IDNA, whose tables are half a megabyte.
        address: Any = (host.encode(), port)
        with socket.create_connection(address, remaining) as self._connection:
            return exchange(self._connection, request_bytes(method, path, name, headers, data), deadline)


def ask_ready(client: Client, health: Health) -> Look:
    """Did the engine answer one real request of its kind? Never raises for what an engine may do."""
    try:
        if health.probe == "http":
            return _ask_path(client, health.path, health.timeout)
        if health.probe == "embed":
            return _ask_embedding(client)
        return _ask_generation(client, health.canary)
    except (OSError, ValueError) as error:
        return _failed(error, client.timeout)


def ask_first(client: Client, health: Health) -> Look:
    """`ask_ready` of an engine that was not ready yet: an answer counts only if it is the engine's own."""
    look = ask_ready(client, health)
    who = (
        listener.stranger(os.getpid(), client.target.host, client.target.port)
        if look.is_ok or look.canary
        else ""
    )
    return look._replace(is_ok=False, message=f"{who} answers at its port", stranger=who) if who else look


def ask_alive(client: Client, health: Health, with_metrics: bool, is_real: bool) -> Look:
    """Does it still answer? A real request asks for a token, for /health lies when the core hangs; an engine
    that sleeps has none to give.

    The counters are read even when the engine did not answer: they tell busy from hung.
    """
    is_real = is_real and not _is_asleep(client)
    look = ask_ready(client, health._replace(canary=None)) if is_real else ask_path(client, health)
    if not with_metrics:
        return look
    tokens, running = read_metrics(client)
    return look._replace(tokens=tokens, running=running)


def ask_canary(client: Client, health: Health) -> Look:
    """Does an engine that is ready answer a canary that it was not asked before?

    One that sleeps is left alone and counts as alive: a request would not wake it.
    """
    return Look(True) if _is_asleep(client) else ask_ready(client, health)


def _is_asleep(client: Client) -> bool:
    try:
        status, body = client.send("GET", "/is_sleeping")
        return status == 200 and json.loads(body)["is_sleeping"] is True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def ask_path(client: Client, health: Health) -> Look:
    """Is GET of the health path 2xx, within the health timeout?"""
    try:
        return _ask_path(client, health.path, health.timeout)
    except (OSError, Unreadable) as error:
        return _failed(error, min(health.timeout, client.timeout))


def read_metrics(client: Client) -> tuple[float | None, float | None]:
    """(sum of PROGRESS, requests running) from /metrics; None where the engine does not tell."""
    try:
        status, body = client.send("GET", "/metrics")
    except (OSError, Unreadable):
        return None, None
    if status != 200:
        return None, None
    tokens = [value for name, value in _samples(body) if PROGRESS.match(name)]
    running = [value for name, value in _samples(body) if RUNNING_GAUGE.match(name)]
    return (sum(tokens) if tokens else None), (sum(running) if running else None)


def _samples(body: bytes) -> Iterator[tuple[str, float]]:
    for line in body.decode(errors="replace").splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        # Labels may hold spaces; the value follows the closing brace, and a timestamp may follow the value.
        value = line.rpartition("}")[2].split() if "{" in line else line.split()[1:]
        if line.startswith("#") or not value:
            continue
        with contextlib.suppress(ValueError):
            yield name, float(value[0])


def _ask_path(client: Client, path: str, timeout: float) -> Look:
    status, body = client.send("GET", path, timeout=timeout)
    if 200 <= status < 300:
        return Look(True)
    return Look(False, _refusal(f"GET {path}", status, body))


def _ask_generation(client: Client, canary: Canary | None) -> Look:
    prompt, tokens = (canary.prompt, canary.max_tokens) if canary else ("hi", 1)
    common = {"model": client.target.model, "max_tokens": tokens, "temperature": 0}
    chat = {**common, "messages": [{"role": "user", "content": prompt}]}
    status, body = client.send("POST", "/v1/chat/completions", chat)
    look = _judge_choices("/v1/chat/completions", status, body, canary)
    if status not in NO_CHAT:
        return look
    status, body = client.send("POST", "/v1/completions", {**common, "prompt": prompt})
    second = _judge_choices("/v1/completions", status, body, canary)
    return second if second.is_ok or second.canary else Look(False, f"{look.message}; {second.message}")


def _judge_choices(path: str, status: int, body: bytes, canary: Canary | None) -> Look:
    if status != 200:
        return Look(False, _refusal(f"POST {path}", status, body))
    answer = _read(path, body)
    if fault := fault_of_generation(answer):
        return Look(False, f"POST {path} answered 200 without {fault}")
    return _judge_canary(text_of(answer), canary) if canary else Look(True)


def _judge_canary(text: str, canary: Canary) -> Look:
    if canary.expect.casefold() in text.casefold():
        return Look(True, canary="right")
    said = _printable(text)
    said = said if len(said) <= ANSWER_SHOWN else said[: ANSWER_SHOWN - 1] + "\N{HORIZONTAL ELLIPSIS}"
    message = f'the canary was answered "{said}", which lacks "{_printable(canary.expect)}"'
    return Look(False, message, canary="wrong")


def _ask_embedding(client: Client) -> Look:
    path = "/v1/embeddings"
    status, body = client.send("POST", path, {"model": client.target.model, "input": "ready?"})
    if status != 200:
        return Look(False, _refusal(f"POST {path}", status, body))
    answer = _read(path, body)
    data = answer.get("data") if isinstance(answer, dict) else None
    if isinstance(data, list) and data and isinstance(data[0], dict) and data[0].get("embedding"):
        return Look(True)
    return Look(False, f"POST {path} answered 200 without a vector")


def _read(path: str, body: bytes) -> Any:
    """Raises ValueError with words for the user."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError(f"POST {path} answered 200 with JSON that cannot be read") from None


def _refusal(what: str, status: int, body: bytes) -> str:
    text = _printable(body[:2000].decode(errors="replace"))
    return f"{what} answered {status}: {text[:200]}" if text else f"{what} answered {status}"


def silence(seconds: float) -> Look:
    """There was no answer within so many seconds."""
    return Look(False, f"no answer within {round(seconds, 2):g} s", is_silent=True)


def _failed(error: Exception, timeout: float) -> Look:
    return silence(timeout) if isinstance(error, TimeoutError) else Look(False, _describe(error))


def _describe(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return NOT_LISTENING
    if isinstance(error, OSError):
        return f"connection failed: {error.strerror or error}"
    if isinstance(error, Unreadable):
        return _printable(f"unreadable answer: {error}")[:200]
    return str(error)


def _printable(text: str) -> str:
    """On one line, and without what a terminal would obey: this is what strangers wrote."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
