"""Secrets of external backends: `${env:NAME}` and `${file:PATH}`, resolved in the gateway only."""

import os
import re
from pathlib import Path

_REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")


def resolve(reference: str) -> str:
    """The value that a reference stands for. Raises ValueError, never naming the value."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise ValueError("api_key is not a reference of the form ${env:NAME} or ${file:PATH}")
    kind, name = found.groups()
    value = _from_environ(name) if kind == "env" else _from_file(name)
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"the value of {reference} cannot be sent in a header: it is not plain ASCII")
    return value


def _from_environ(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ValueError(f"the environment variable {name} is not set where the gateway runs")
    return value


def _from_file(path: str) -> str:
    try:
        value = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not value:
        raise ValueError(f"the file {path} is empty")
    return value
