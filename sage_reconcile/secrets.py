"""Secrets: `${env:NAME}` and `${file:PATH}` in a value, resolved where it is used and stored nowhere.

And API keys: how one is made, and the digest that is kept in its place.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from secrets import token_urlsafe

KEY_BYTES = 32
DIGEST_MARK = "sha256:"
_DIGEST = re.compile("[0-9a-f]{64}")
_TOKEN = re.compile(r"\$\$\{|\$\{(env|file):([^}]+)\}")


def resolve(text: str, environ: Mapping[str, str]) -> str:
    """`text` with every reference replaced and `$${` as a literal `${`.

    Raises ValueError with the name of what is missing, never with a value.
    """

    def value(match: re.Match[str]) -> str:
        source, name = match.groups()
        if source is None:
            return "${"
        return _from_environ(name, environ) if source == "env" else _from_file(name)

    return _TOKEN.sub(value, text)


def refers(text: str) -> bool:
    """Whether a value of somewhere else is part of `text`."""
    return any(match.group(1) for match in _TOKEN.finditer(text))


def variables(text: str) -> set[str]:
    """The environment variables that `text` refers to."""
    return {match.group(2) for match in _TOKEN.finditer(text) if match.group(1) == "env"}


def new_key() -> str:
    """A new API key: 256 bits that nobody can guess."""
    return f"sk-sage-{token_urlsafe(KEY_BYTES)}"


def key_digest(text: str) -> str:
    """The SHA-256 of an API key as 64 hex digits; of `sha256:HEX`, which stands for a key, that HEX.

    Plain SHA-256 is enough for keys that are random: there is no list of them to try. Raises ValueError
    without the text for what is no digest after `sha256:`.
    """
    if not text.startswith(DIGEST_MARK):
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    digest = text.removeprefix(DIGEST_MARK).strip().lower()
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"after {DIGEST_MARK} 64 hex digits are wanted")
    return digest


def _from_environ(name: str, environ: Mapping[str, str]) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise ValueError(f"the environment variable {name} is not set")
    return value


def _from_file(path: str) -> str:
    try:
        value = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not value:
        raise ValueError(f"the file {path} is empty")
    return value
