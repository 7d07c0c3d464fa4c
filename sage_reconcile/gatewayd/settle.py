"""What a gateway is to be started with: the command line, over the stack file, over the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage_reconcile import secrets
from sage_reconcile.errors import PermanentError
from sage_reconcile.gatewayd.options import GatewayOptions

if TYPE_CHECKING:
    from sage_reconcile.stack.schema import Gateway

API_KEYS = "SAGE_API_KEYS"
HOST = "SAGE_GATEWAY_HOST"
PORT = "SAGE_GATEWAY_PORT"
# Of the gateway's environment, "1" when its SAGE_API_KEYS were made from the stack file.
KEYS_OF_STACK = "SAGE_GATEWAY_KEYS_OF_STACK"
FROM_FILE = ("host", "port", "workers")
PORTS = range(1, 65536)


@dataclass(frozen=True, slots=True)
class Start:
    """A start that is decided. `environ` holds the resolved keys: it goes to the process and nowhere else.

    `stack_name` is "" without a stack file; `watch_environ` is what the watcher gets, without those keys.
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
    base = {name: value for name, value in environ.items() if name != KEYS_OF_STACK}
    if KEYS_OF_STACK in environ:
        base.pop(API_KEYS, None)
    values: dict[str, Any] = {**_from_environ(base)}
    added: dict[str, str] = {}
    name = ""
    if stack:
        # Not before: without a stack file nobody waits for the libraries that read one.
        from sage_reconcile.stack.load import load

        file = load([Path(stack)], base)
        section, name = file.model.gateway, file.name
        values |= {field: getattr(section, field) for field in FROM_FILE if field in section.model_fields_set}
        if section.api_keys and "api_key_file" not in asked:
            added = {API_KEYS: _keys(section, stack, base), KEYS_OF_STACK: "1"}
    values |= asked
    if values.get("port", 1) not in PORTS:
        raise PermanentError(f"{PORT} is {base[PORT]!r}, which is no port: 1 to 65535")
    options = GatewayOptions(**values, stack=stack, given=tuple(sorted(asked)))
    return Start(options, {**base, **added}, base, name)


def settle_again(options: GatewayOptions, stack: str, environ: Mapping[str, str]) -> Start:
    """The start that a restart makes of `options`: what was given stays, the file is read anew."""
    return settle({name: getattr(options, name) for name in options.given}, stack, environ)


def _from_environ(environ: Mapping[str, str]) -> dict[str, str | int]:
    """SAGE_GATEWAY_HOST and SAGE_GATEWAY_PORT; a port that is no number is -1, which matters if it counts."""
    found: dict[str, str | int] = {}
    if host := environ.get(HOST, "").strip():
        found["host"] = host
    if port := environ.get(PORT, "").strip():
        found["port"] = int(port) if port.isdecimal() else -1
    return found


def _keys(section: "Gateway", stack: str, environ: Mapping[str, str]) -> str:
    """The keys of the file, resolved, as SAGE_API_KEYS holds them."""
    keys = []
    for number, reference in enumerate(section.api_keys):
        where = f"{stack}: gateway.api_keys[{number}]"
        try:
            key = secrets.resolve(reference, environ)
        except ValueError as error:
            raise PermanentError(f"{where}: {error} where the gateway is started") from error
        # SAGE_API_KEYS has commas between its keys: half of this one would open the gateway.
        if "," in key or "\n" in key:
            raise PermanentError(f"{where}: a key cannot hold a comma or a line break; list keys one by one")
        keys.append(key)
    return ",".join(keys)
