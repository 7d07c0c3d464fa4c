"""Secrets: `${env:NAME}` and `${file:PATH}` in a value, resolved where it is used and stored nowhere."""

import re
from collections.abc import Mapping
from pathlib import Path

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
