"""`${env:NAME}` and `${file:PATH}`: found, checked, substituted. Pure: the environment is a mapping."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sage_reconcile.stack.problems import Path, Problem

_TOKEN = re.compile(r"\$\$\{|\$\{(?P<body>[^}]*)(?P<end>\}?)")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_SECRET_FIELDS = ("env", "api_key", "api_keys")
_TEXT_ONLY = "write $${ for a literal ${"


class Substituted(str):
    """Text that came from the environment; a field that wants a number or a switch may read it as one."""


@dataclass(frozen=True, slots=True)
class Context:
    """What references are read from; `exists` tells whether a secret's file is there."""

    environ: Mapping[str, str]
    exists: Callable[[str], bool]
    is_portable: bool


def is_reference(text: str) -> bool:
    """Whether the text is one whole `${env:NAME}` or `${file:PATH}` and nothing else."""
    match = _TOKEN.fullmatch(text)
    return bool(match and match["body"] is not None and match["body"].startswith(("env:", "file:")))


def has_reference(text: str) -> bool:
    return any(match["body"] is not None for match in _TOKEN.finditer(text))


def anchor_file_references(text: str, absolute: Callable[[str], str]) -> str:
    """`${file:PATH}` with PATH made absolute, so that it means the same wherever it is resolved."""

    def anchored(match: re.Match[str]) -> str:
        body = match["body"]
        if body is None or not match["end"] or not body.startswith("file:") or body == "file:":
            return match[0]
        return f"${{file:{absolute(body[5:])}}}"

    return _TOKEN.sub(anchored, text)


def substitute(value: Any, path: Path, context: Context, problems: list[Problem]) -> Any:
    """`value` with `${env:NAME}` replaced everywhere but in secrets: they are checked and stay as written."""
    if isinstance(value, dict):
        return {key: substitute(item, (*path, key), context, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, (*path, index), context, problems) for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    is_secret = any(part in _SECRET_FIELDS for part in path) or _is_of_gateway(path)
    found = len(problems)
    text = _TOKEN.sub(lambda match: _replace(match, path, is_secret, context, problems), value)
    if is_secret or len(problems) > found:
        return value
    return text if text == value else Substituted(text)


def _is_of_gateway(path: Path) -> bool:
    return (path[:2] == ("gateway", "keys") and path[-1] == "key") or path == ("gateway", "sessions", "url")


def _replace(
    match: re.Match[str], path: Path, is_secret: bool, context: Context, problems: list[Problem]
) -> str:
    body = match["body"]
    if body is None:
        return "${"
    source, _, name = body.partition(":")
    problem = _misuse(match, source, name, is_secret) or _missing(source, name, context)
    if problem:
        problems.append(Problem(path, *problem))
        return match[0]
    return context.environ.get(name, match[0]) if source == "env" else match[0]


def _misuse(match: re.Match[str], source: str, name: str, is_secret: bool) -> tuple[str, str] | None:
    """What is wrong with the reference as written: (message, hint)."""
    if not match["end"]:
        return f"the reference {match[0]} has no closing }}", _TEXT_ONLY
    if source not in ("env", "file") or ":" not in match[0]:
        wanted = f"did you mean ${{env:{match['body']}}}? " if _ENV_NAME.fullmatch(match["body"]) else ""
        return (
            f"{match[0]} is not a reference",
            f"{wanted}there are ${{env:NAME}} and ${{file:PATH}}; {_TEXT_ONLY}",
        )
    if source == "env" and not _ENV_NAME.fullmatch(name):
        return f'"{name}" cannot be the name of an environment variable', ""
    if source == "file" and not name:
        return "${file:} names no file", ""
    if is_secret:
        return None
    if source == "file":
        return (
            "a secret from a file would show here in process listings and plans",
            "${file:PATH} is for values of env, api_key, gateway.api_keys, key of gateway.keys and "
            "gateway.sessions.url",
        )
    if _SECRET_NAME.search(name):
        return (
            f"{name} looks like a secret and would show here in process listings and plans",
            "pass it through env",
        )
    return None


def _missing(source: str, name: str, context: Context) -> tuple[str, str] | None:
    if context.is_portable:
        return None
    if source == "env" and name not in context.environ:
        return f"the environment variable {name} is not set", f"export {name}, or validate with --portable"
    if source == "file" and not context.exists(name):
        return f"the file {name} does not exist", "create it, or validate with --portable"
    return None
