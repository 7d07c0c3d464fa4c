"""Versions of engine programs in the stack file: the short form, and what goes together. Pure."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from sage_reconcile.stack.fields import Text, wrong

VERSIONED = ("vllm", "transformers", "sentence-transformers")
"""Runtimes that are Python packages of one name, and so can be installed by version."""

_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!_-]*")
_PYTHON = re.compile(r"3\.[0-9]+(\.[0-9]+)?")
_USER_OF_URL = re.compile(r"https?://[^/]*@")


def long_forms(runtimes: Any) -> Any:
    """`vllm: "0.24.0"` as `vllm: {kind: vllm, version: "0.24.0"}`, and `kind` where the name says it."""
    if not isinstance(runtimes, dict):
        return runtimes
    return {name: _long_form(name, value) for name, value in runtimes.items()}


def _long_form(name: Any, value: Any) -> Any:
    if isinstance(value, dict):
        named = name in VERSIONED and "kind" not in value
        return {"kind": name, **value} if named else value
    if value is None or isinstance(value, list):
        return value
    return {"version": value} | ({"kind": name} if name in VERSIONED else {})


def _version(value: str) -> str:
    if not _VERSION.fullmatch(value):
        raise wrong(
            f'"{value}" is not one version', 'write it exactly, as "0.24.0": a range would not be a pin'
        )
    return value


VERSION_SCHEMA = {"type": "string", "pattern": "^[0-9]"}

Version = Annotated[Text, AfterValidator(_version), WithJsonSchema(VERSION_SCHEMA)]


def check_program(
    kind: str, version: str | None, python: str | None, packages: Sequence[str], index: str | None
) -> None:
    """Raises where fields of a runtime contradict each other."""
    if version is None:
        if packages or index is not None:
            raise wrong("with and index say what is installed with a version", 'write version: "..."')
        if python is not None and _PYTHON.fullmatch(python):
            raise wrong(f'python "{python}" is a version, not a program', "give version, too, or a path")
        return
    if kind not in VERSIONED:
        raise wrong(f"the runtime {kind} is no package that could be installed by version", "remove version")
    if python is not None and not _PYTHON.fullmatch(python):
        raise wrong(
            f'with version, python is a version of Python, not "{python}"', 'write "3.12", or leave one out'
        )
    if index is not None and _USER_OF_URL.match(index):
        raise wrong("a secret must not stand in the file itself", "put user and password into ~/.netrc")
