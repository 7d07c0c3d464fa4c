"""What the unit is to start here: the sage command, the stack, who runs it, which variables it needs."""

import os
import pwd
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sage_reconcile import secrets
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.service.unit import Scope, Service, env_text
from sage_reconcile.stack.file import StackFile

GATEWAY_KEYS = "SAGE_API_KEYS"
_NAMED = re.compile(r"^#?\s*([A-Za-z_][A-Za-z0-9_]*)=", re.M)


def describe(home: Home, stack: Path, scope: Scope, name: str, environ: Mapping[str, str]) -> Service:
    """The service of this stack file. Raises PermanentError where its user cannot be named."""
    path = stack.expanduser().absolute()
    return Service(
        scope=scope,
        name=name,
        program=_program(),
        stack=str(path),
        folder=str(path.parent),
        home=str(home.root),
        env_file=str(env_file(home, name)),
        path=environ.get("PATH") or os.defpath,
        user=_user(home),
    )


def env_file(home: Home, name: str) -> Path:
    return home.root / f"{name}.env"


def write_environment(path: Path, stack: StackFile, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Adds the variables that the stack refers to and the file does not name yet, with the values of this
    shell; mode 0600. Gives the names that have no value. What stands there already is never changed.
    """
    wanted = sorted({name for text in _texts(stack.document) for name in secrets.variables(text)})
    wanted += [GATEWAY_KEYS] if environ.get(GATEWAY_KEYS) else []
    try:
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        named = set(_NAMED.findall(there))
        known = {name: environ[name] for name in wanted if name not in named and environ.get(name)}
        missing = tuple(name for name in wanted if name not in named and name not in known)
        added = env_text(known, missing)
        if added or not path.exists():
            joint = "" if not there or there.endswith("\n") else "\n"
            _write_private(path, there + joint + added)
        else:
            path.chmod(0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError(f"{path}: cannot be written: {error}") from None
    except ValueError as error:
        raise PermanentError(str(error)) from None
    unset = re.findall(r"^#\s*([A-Za-z_][A-Za-z0-9_]*)=", there, re.M)
    return tuple(sorted({*missing, *(name for name in unset if name in wanted)}))


def _write_private(path: Path, text: str) -> None:
    """Never readable by others, not for a moment; its owner is that of its folder."""
    part = path.with_name(f".{path.name}.new")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    owner = path.parent.stat()
    if os.getuid() == 0 and owner.st_uid != 0:
        os.chown(part, owner.st_uid, owner.st_gid)
    part.replace(path)


def _program() -> tuple[str, ...]:
    """The command beside this interpreter, else the module by it."""
    script = Path(sys.executable).with_name("sage")
    if os.access(script, os.X_OK):
        return (str(script),)
    return (sys.executable, "-P", "-m", "sage_reconcile.cli.main")


def _user(home: Home) -> str:
    """Whoever owns SAGE_HOME: its launches are only seen by that user. `sudo` must not change that."""
    try:
        uid = home.root.stat().st_uid
    except OSError:
        uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise PermanentError(f"user {uid}, who owns {home.root}, has no name on this host") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
