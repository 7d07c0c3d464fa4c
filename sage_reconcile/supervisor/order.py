"""The order that a supervisor takes: what to start, how to watch it, where to write. Parsed once, in full."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class OrderError(ValueError):
    """The order is malformed; str() names the field and what it should be."""


class Canary(NamedTuple):
    """A question whose greedy answer must have `expect` in it."""

    prompt: str
    expect: str
    max_tokens: int


class Health(NamedTuple):
    """Probe settings; times in seconds, `failures` in misses in a row."""

    probe: str
    path: str
    startup_timeout: float
    interval: float
    timeout: float
    failures: int
    canary: Canary | None = None

    def plain(self) -> dict[str, object]:
        return {**self._asdict(), "canary": self.canary._asdict() if self.canary else None}


class Restart(NamedTuple):
    """When an engine that had been ready is started again; times in seconds."""

    policy: str
    max_attempts: int
    window: float
    backoff: float
    backoff_max: float


class Live(NamedTuple):
    """What may change while the launch runs; `drain` in seconds."""

    health: Health
    restart: Restart
    drain: float

    def plain(self) -> dict[str, object]:
        """The shape of `live` in an order, in live.json and in launch.json."""
        return {"health": self.health.plain(), "restart": self.restart._asdict(), "drain": self.drain}


class Target(NamedTuple):
    """Where the engine answers, and the model name that it answers to."""

    host: str
    port: int
    model: str
    headers: dict[str, str]


class Order(NamedTuple):
    """One launch. `env` and `target.headers` hold secrets: neither is ever written to a file."""

    mark: dict[str, Any]
    argv: list[str]
    env: dict[str, str]
    cwd: str | None
    directory: str
    live: Live
    target: Target
    log_bytes: int
    log_keep: int
    secrets: tuple[str, ...] = ()
    """Names of `env` whose values are secrets, whatever they are called."""

    @property
    def launch(self) -> str:
        return str(self.mark["launch"])

    @property
    def name(self) -> str:
        """`stack/engine#replica`, for messages."""
        replica = self.mark.get("replica")
        if not isinstance(replica, dict):
            return self.launch
        return "{stack}/{engine}#{replica}".format_map({"stack": "", "engine": "", "replica": "", **replica})


class _Fields:
    """One JSON object whose fields are taken by name and type; `where` is its path in the order."""

    def __init__(self, plain: object, where: str) -> None:
        if not isinstance(plain, Mapping):
            raise OrderError(f"{where}: expected an object, got {_show(plain)}")
        self.plain = plain
        self.where = where

    def sub(self, key: str) -> "_Fields":
        return _Fields(self.plain.get(key), f"{self.where}.{key}")

    def text(self, key: str) -> str:
        value = self.plain.get(key)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "text")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self.plain.get(key) is None else self.text(key)

    def choice(self, key: str, *choices: str) -> str:
        value = self.plain.get(key)
        if value not in choices:
            raise self._wrong(key, "one of " + ", ".join(choices))
        return str(value)

    def number(self, key: str, least: float = 0.0) -> float:
        value = self.plain.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise self._wrong(key, f"a number of at least {least:g}")
        return float(value)

    def count(self, key: str, least: int = 0) -> int:
        value = self.plain.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, f"a whole number of at least {least}")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.plain.get(key)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) for v in value):
            raise self._wrong(key, "a list of texts")
        return list(value)

    def table(self, key: str) -> dict[str, str]:
        """Texts by name. The error shows no value, for these are the fields that hold secrets."""
        value = self.plain.get(key) or {}
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for kv in value.items() for v in kv):
            raise OrderError(f"{self.where}.{key}: expected texts by name")
        return dict(value)

    def _wrong(self, key: str, expected: str) -> OrderError:
        return OrderError(f"{self.where}.{key}: expected {expected}, got {_show(self.plain.get(key))}")


def _show(value: object) -> str:
    return "nothing" if value is None else repr(value)[:80]


def parse_live(plain: object, where: str = "live") -> Live:
    """Raises OrderError."""
    fields = _Fields(plain, where)
    health, restart = fields.sub("health"), fields.sub("restart")
    canary = health.sub("canary") if health.plain.get("canary") is not None else None
    return Live(
        health=Health(
            probe=health.choice("probe", "generate", "embed", "http"),
            path=health.text("path"),
            startup_timeout=health.number("startup_timeout"),
            interval=health.number("interval", 0.05),
            timeout=health.number("timeout", 0.05),
            failures=health.count("failures", 1),
            canary=_parse_canary(canary) if canary else None,
        ),
        restart=Restart(
            policy=restart.choice("policy", "always", "on-failure", "never"),
            max_attempts=restart.count("max_attempts"),
            window=restart.number("window"),
            backoff=restart.number("backoff"),
            backoff_max=restart.number("backoff_max"),
        ),
        drain=fields.number("drain"),
    )


def _parse_canary(fields: _Fields) -> Canary:
    return Canary(fields.text("prompt"), fields.text("expect"), fields.count("max_tokens", 1))


def _parse_target(fields: _Fields) -> Target:
    url = urlsplit(fields.text("url"))
    try:
        port = url.port
    except ValueError as error:
        raise OrderError(f"{fields.where}.url: {error}") from None
    if url.scheme != "http" or not url.hostname or port is None:
        raise OrderError(f"{fields.where}.url: expected http://HOST:PORT, got {url.geturl()!r}")
    return Target(url.hostname, port, fields.text("model"), fields.table("headers"))


def parse(data: bytes) -> Order:
    """Raises OrderError, naming the field that is at fault."""
    try:
        plain = json.loads(data)
    except ValueError as error:
        raise OrderError(f"the order is not whole JSON: {error}") from None
    fields = _Fields(plain, "order")
    mark = fields.sub("mark")
    mark.text("launch")
    directory = fields.text("directory")
    if not directory.startswith("/"):
        raise OrderError(f"order.directory: expected an absolute path, got {directory!r}")
    log = fields.sub("log")
    return Order(
        mark=dict(mark.plain),
        argv=fields.texts("argv"),
        env=fields.table("env"),
        cwd=fields.optional_text("cwd"),
        directory=directory,
        live=parse_live(plain.get("live"), "order.live"),
        target=_parse_target(fields.sub("probe")),
        log_bytes=log.count("max_bytes", 1024),
        log_keep=log.count("keep"),
        secrets=tuple(fields.texts("secrets")) if plain.get("secrets") else (),
    )


def mark_text(mark: Mapping[str, object]) -> str:
    """The value of SAGE_LAUNCH: compact JSON with sorted keys, the same in every process of a launch."""
    return json.dumps(mark, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
