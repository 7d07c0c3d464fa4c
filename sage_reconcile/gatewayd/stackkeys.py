"""The keys of a stack file, as the environment of a gateway holds them: digests, and no key."""

from collections.abc import Iterator, Mapping

from gateway.keysource import API_KEYS, STACK_KEYS, KeyEntry, to_text
from sage_reconcile import secrets
from sage_reconcile.errors import PermanentError
from sage_reconcile.stack.gateway import Gateway
from sage_reconcile.stack.schema import Stack

# Linux starts no process with a longer variable: 32 pages, with name and end.
MAX_VARIABLE = (128 << 10) - 64


def with_keys(environ: Mapping[str, str], stack: Stack, file: str) -> Mapping[str, str]:
    """`environ` with the keys of the file instead of SAGE_API_KEYS; as it is where the file has none.

    The variables that the keys came from are left out: who reads the gateway's environment finds no key.
    Raises PermanentError for a key that is not to be had, or that is there twice.
    """
    entries = _entries(stack.gateway, file, environ)
    if not entries:
        return environ
    text = to_text(entries)
    if len(text) > MAX_VARIABLE:
        raise PermanentError(
            f"{file}: gateway.keys: {len(entries)} keys take {len(text)} bytes as told to the gateway, which "
            f"is more than {MAX_VARIABLE}: shorten the lists of models, or put keys into --api-key-file"
        )
    hidden = _variables(stack)
    kept = {name: value for name, value in environ.items() if name not in hidden and name != API_KEYS}
    return {**kept, STACK_KEYS: text}


def _entries(gateway: Gateway, file: str, environ: Mapping[str, str]) -> list[KeyEntry]:
    found: dict[str, tuple[str, KeyEntry]] = {}
    for place, entry in _all(gateway, file, environ):
        if entry.sha256 in found:
            raise PermanentError(f"{file}: {place}: this is the same key as {found[entry.sha256][0]}")
        found[entry.sha256] = (place, entry)
    return [entry for _, entry in found.values()]


def _all(gateway: Gateway, file: str, environ: Mapping[str, str]) -> Iterator[tuple[str, KeyEntry]]:
    """Every key with its place in the file."""
    for number, reference in enumerate(gateway.api_keys):
        place = f"gateway.api_keys[{number}]"
        yield place, KeyEntry(place, _digest(reference, f"{file}: {place}", environ))
    for number, key in enumerate(gateway.keys):
        place = f"gateway.keys[{number}]"
        digest = key.sha256 or _digest(key.key or "", f"{file}: {place}.key", environ)
        yield (
            place,
            KeyEntry(
                key.name,
                digest,
                key.models,
                key.requests_per_minute,
                key.tokens_per_minute,
                key.max_concurrent,
                key.admin,
            ),
        )


def _digest(reference: str, where: str, environ: Mapping[str, str]) -> str:
    try:
        key = secrets.resolve(reference, environ)
    except ValueError as error:
        raise PermanentError(f"{where}: {error} where the gateway is started") from error
    # Whoever writes several keys so means each of them; as one key they would let in nobody.
    if "," in key or "\n" in key:
        raise PermanentError(f"{where}: a key cannot hold a comma or a line break; list keys one by one")
    try:
        return secrets.key_digest(key)
    except ValueError as error:
        raise PermanentError(f"{where}: {error}") from error


def _variables(stack: Stack) -> set[str]:
    """The variables that keys are read from, but for those that the gateway sends to engines as `api_key`."""
    gateway = stack.gateway
    references = [*gateway.api_keys, *(key.key for key in gateway.keys if key.key)]
    keys = set().union(*(secrets.variables(reference) for reference in references))
    sent = set().union(*(secrets.variables(engine.api_key or "") for engine in stack.engines))
    return keys - sent
