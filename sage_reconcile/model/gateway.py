"""The `gateway` section of the stack file, as values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One entry of `gateway.keys`: a reference to the key, or its digest (64 hex digits); the other is "".

    Limits of 0 are none, no `models` are all.
    """

    name: str
    key: str = ""
    sha256: str = ""
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_concurrent: int = 0
    admin: bool = False


@dataclass(frozen=True, slots=True)
class SessionsSpec:
    """Where the gateway keeps conversations. `url` has references to its secrets, "" is SAGE_HOME/sage.db."""

    enabled: bool = True
    url: str = ""
    max_turns: int = 200
    max_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """The `gateway` section. `api_keys` are references; without them and `keys`, SAGE_API_KEYS counts."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    api_keys: tuple[str, ...] = ()
    keys: tuple[KeySpec, ...] = ()
    cors_origins: tuple[str, ...] = ()
    sessions: SessionsSpec | None = None
