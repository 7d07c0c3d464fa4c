"""What a gateway is to be started with: the command line, over the stack file, over the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.keysource import API_KEYS, STACK_KEYS
from gateway.settings import CORS_ORIGINS, STACK_SESSIONS, SessionSettings
from sage_reconcile.errors import PermanentError
from sage_reconcile.gatewayd.options import GatewayOptions

HOST = "SAGE_GATEWAY_HOST"
PORT = "SAGE_GATEWAY_PORT"
FROM_FILE = ("host", "port", "workers")
# Variables of the gateway that a stack file alone decides, where there is one.
OF_STACK = (STACK_KEYS, CORS_ORIGINS, STACK_SESSIONS)
PORTS = range(1, 65536)


@dataclass(frozen=True, slots=True)
class Start:
    """A start that is decided. `environ` is the gateway's: of the keys of a stack file it holds the digests.

    `stack_name` is "" without a stack file; `watch_environ` is what the watcher gets, which reads that file
    and so needs what it refers to.
    """

    options: GatewayOptions
    environ: Mapping[str, str]
    watch_environ: Mapping[str, str]
    stack_name: str = ""


def settle(asked: Mapping[str, str | int], stack: str, environ: Mapping[str, str]) -> Start:
    """Decides a start. `asked` are the options of the command line, `stack` is an absolute path or "".

    Raises StackError with every fault of the stack file, PermanentError for a key that is not to be had or a
    variable that is no port.
    """
    base = {name: value for name, value in environ.items() if not stack or name not in OF_STACK}
    values: dict[str, Any] = {**_from_environ(base)}
    served: Mapping[str, str] = base
    name = ""
    if stack:
        # Not before: without a stack file nobody waits for the libraries that read one.
        from sage_reconcile.gatewayd.stackkeys import with_keys
        from sage_reconcile.stack.load import load

        file = load([Path(stack)], base)
        section, name = file.model.gateway, file.name
        values |= {field: getattr(section, field) for field in FROM_FILE if field in section.model_fields_set}
        if "api_key_file" not in asked:
            served = with_keys(base, file.model, stack)
        if section.cors_origins:
            served = {**served, CORS_ORIGINS: ",".join(section.cors_origins)}
        if section.sessions:
            given = section.sessions
            told = SessionSettings(given.enabled, given.url or "", given.max_turns, given.max_bytes)
            served = {**served, STACK_SESSIONS: told.to_text()}
    values |= asked
    if values.get("port", 1) not in PORTS:
        raise PermanentError(f"{PORT} is {base[PORT]!r}, which is no port: 1 to 65535")
    options = GatewayOptions(**values, stack=stack, given=tuple(sorted(asked)))
    return Start(options, served, base, name)


def settle_again(options: GatewayOptions, stack: str, environ: Mapping[str, str]) -> Start:
    """The start that a restart makes of `options`: what was given stays, the file is read anew."""
    return settle({name: getattr(options, name) for name in options.given}, stack, environ)


def is_same_access(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two environments of a gateway let in the same clients, and keep their sessions in one place."""
    return all(one.get(name) == other.get(name) for name in (API_KEYS, *OF_STACK))


def _from_environ(environ: Mapping[str, str]) -> dict[str, str | int]:
    """SAGE_GATEWAY_HOST and SAGE_GATEWAY_PORT; a port that is no number is -1, which matters if it counts."""
    found: dict[str, str | int] = {}
    if host := environ.get(HOST, "").strip():
        found["host"] = host
    if port := environ.get(PORT, "").strip():
        found["port"] = int(port) if port.isdecimal() else -1
    return found
