"""Where API keys come from: variables of the environment, a file, and what a stack file was made into."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from sage_reconcile import secrets
from sage_reconcile.errors import PermanentError

# Keys as they are, commas between them.
API_KEYS = "SAGE_API_KEYS"
ADMIN_API_KEYS = "SAGE_ADMIN_API_KEYS"
# The keys of a stack file: a JSON list of KeyEntry, made by `sage gateway start --stack`.
STACK_KEYS = "SAGE_GATEWAY_KEYS"


class KeyEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key and what it may. `sha256` is 64 hex digits, `models` names and patterns, a limit of 0 is none."""

    name: str
    sha256: str
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_concurrent: int = 0
    admin: bool = False


def to_text(entries: Iterable[KeyEntry]) -> str:
    """The value of SAGE_GATEWAY_KEYS."""
    return msgspec.json.encode(list(entries)).decode()


def entries(environ: Mapping[str, str], key_file: str) -> Iterator[KeyEntry]:
    """Every key that is given; what says most about a key comes first. `key_file` is a path or "".

    Raises PermanentError for what cannot be read, and for a file that holds no key: closed, not open, by
    mistake. No message has any part of a key.
    """
    yield from _of_stack(environ.get(STACK_KEYS, ""))
    for variable, is_admin in ((ADMIN_API_KEYS, True), (API_KEYS, False)):
        given = [key.strip() for key in environ.get(variable, "").split(",") if key.strip()]
        for number, key in enumerate(given):
            yield _entry(f"{variable}[{number}]", key, is_admin)
    if key_file:
        yield from _of_file(key_file)


def _of_stack(text: str) -> list[KeyEntry]:
    try:
        found = msgspec.json.decode(text, type=list[KeyEntry]) if text else []
        return [msgspec.structs.replace(one, sha256=_checked(one.sha256)) for one in found]
    except ValueError as error:
        raise PermanentError(f"{STACK_KEYS}: {error}") from error


def _of_file(path: str) -> Iterator[KeyEntry]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PermanentError(f"cannot read the API key file {path}: {reason}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    found = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not found:
        raise PermanentError(f"the API key file {path} holds no key: write one key a line")
    for number, line in found:
        yield _entry(f"{Path(path).name}:{number}", line, False)


def _entry(name: str, key: str, is_admin: bool) -> KeyEntry:
    try:
        return KeyEntry(name, secrets.key_digest(key), admin=is_admin)
    except ValueError as error:
        raise PermanentError(f"{name}: {error}") from error


def _checked(digest: str) -> str:
    return secrets.key_digest(f"{secrets.DIGEST_MARK}{digest}")
