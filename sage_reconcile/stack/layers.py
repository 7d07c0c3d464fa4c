"""Files to layers: reading, includes, and paths made absolute against the file that holds them."""

import hashlib
import os
import select
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_reconcile.errors import Fault
from sage_reconcile.stack.lora import anchored
from sage_reconcile.stack.problems import describe, did_you_mean
from sage_reconcile.stack.programs import long_forms
from sage_reconcile.stack.references import anchor_file_references
from sage_reconcile.stack.yamltree import Node, parse

MAX_BYTES = 4 * 2**20
PIPE_SECONDS = 10.0
MAX_FILES = 100

_EMPTY = "empty file: nothing is stopped because of it"
_EMPTY_HINT = "to stop all engines of the stack write `engines: []`"


@dataclass(frozen=True, slots=True)
class Layer:
    """One file: its tree with places, and its document with absolute paths."""

    path: str
    sha256: str
    root: Node
    document: dict[str, Any]


def layer_of(path: str, data: bytes, root: Node, is_portable: bool = False) -> Layer:
    """The layer that a file with this content is; `root` is its tree, a map."""
    document = root.plain()
    _Anchor(Path(path).absolute().parent, is_portable).document(document)
    return Layer(path, hashlib.sha256(data).hexdigest(), root, document)


class Reader:
    """Reads files and what they include, in the order in which they are laid over one another."""

    def __init__(self, is_portable: bool, texts: Mapping[str, str] | None = None) -> None:
        """`texts` are contents by path that count instead of what lies there."""
        self._texts = texts or {}
        self.layers: list[Layer] = []
        self.faults: list[Fault] = []
        self.files: list[str] = []
        self._is_portable = is_portable
        self._open: list[Path] = []

    def read(self, path: str) -> None:
        """Read one file: its includes first, then itself over them."""
        if len(self.files) >= MAX_FILES:
            self._fault(path, f"more than {MAX_FILES} files are included")
            return
        self.files.append(path)
        data = self._bytes(path)
        text = self._text(path, data) if data is not None else None
        if data is None or text is None:
            return
        root, faults = parse(text)
        self.faults += [Fault(path, f.line, f.column, "", f.message, f.hint) for f in faults]
        if root is None or root.value is None:
            if not faults:
                self._fault(path, _EMPTY, _EMPTY_HINT)
            return
        if not isinstance(root.value, dict):
            self.faults.append(
                Fault(
                    path,
                    root.line,
                    root.column,
                    "",
                    f"a stack file is a map, this is {describe(root.plain())}",
                )
            )
            return
        self._open.append(Path(path).absolute())
        self._include(path, root)
        self._open.pop()
        self.layers.append(layer_of(path, data, root, self._is_portable))

    def _include(self, path: str, root: Node) -> None:
        include = root.value.get("include")
        if include is None or not isinstance(include.value, list):
            return
        for index, item in enumerate(include.value):
            if not isinstance(item.value, str):
                continue
            target = os.path.normpath(os.path.join(os.path.dirname(path), item.value))
            field = f"include[{index}]"
            if Path(target).absolute() in self._open:
                chain = " -> ".join(p.name for p in [*self._open, Path(target)])
                self.faults.append(Fault(path, item.line, item.column, field, f"includes itself: {chain}"))
            elif not os.path.isfile(target):
                message = f"{item.value} does not exist" if not os.path.exists(target) else "is not a file"
                self.faults.append(Fault(path, item.line, item.column, field, message, _nearby(target)))
            else:
                self.read(target)

    def _bytes(self, path: str) -> bytes | None:
        try:
            data = self._texts[path].encode() if path in self._texts else _read(path)
        except FileNotFoundError:
            self._fault(path, "no such file", _nearby(path))
        except IsADirectoryError:
            self._fault(path, "is a directory, not a file", "name the stack file in it")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            self._fault(path, f"cannot be read: {reason or error}", "check the path and its permissions")
        else:
            if len(data) <= MAX_BYTES:
                return data
            self._fault(
                path, f"is larger than {MAX_BYTES // 2**20} MiB and was not read", "is this a stack file?"
            )
        return None

    def _text(self, path: str, data: bytes) -> str | None:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            self._fault(path, "is encoded as UTF-16", "save it as UTF-8")
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = data[: error.start]
            line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
            message = f"byte 0x{data[error.start]:02X} is not UTF-8"
            self.faults.append(Fault(path, line, column, "", message, "save the file as UTF-8"))
            return None

    def _fault(self, path: str, message: str, hint: str = "") -> None:
        self.faults.append(Fault(path, 0, 0, "", message, hint))


def _read(path: str) -> bytes:
    """At most MAX_BYTES + 1 bytes. Raises OSError; never waits for longer than PIPE_SECONDS.

    A pipe is read (`sage plan <(generate)`), as long as somebody writes into it.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb", buffering=0) as file:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(path)
        if not stat.S_ISREG(kind) and not stat.S_ISFIFO(kind):
            raise OSError(0, "it is neither a file nor a pipe")
        data = b""
        while len(data) <= MAX_BYTES:
            ready, _, _ = select.select([handle], [], [], PIPE_SECONDS)
            part = file.read(MAX_BYTES + 1 - len(data)) if ready else None
            if part is None:
                raise OSError(0, f"nothing came from it within {PIPE_SECONDS:g} s")
            if not part:
                break
            data += part
        return data


def _nearby(path: str) -> str:
    """Did-you-mean over the files beside `path`."""
    folder, name = os.path.split(path)
    try:
        beside = [entry.name for entry in os.scandir(folder or ".") if entry.is_file()]
    except OSError:
        return f"the folder {folder} does not exist" if folder and not os.path.exists(folder) else ""
    return did_you_mean(name, beside)


class _Anchor:
    """Makes the paths of one document absolute and short forms long, in place; wrong types are left to
    validation."""

    def __init__(self, folder: Path, is_portable: bool) -> None:
        self._folder = folder
        self._is_portable = is_portable

    def document(self, document: dict[str, Any]) -> None:
        include = document.get("include")
        if isinstance(include, list):
            document["include"] = [
                self._absolute(item) if isinstance(item, str) else item for item in include
            ]
        engines = document.get("engines")
        for engine in [document.get("defaults"), *(engines if isinstance(engines, list) else [])]:
            if isinstance(engine, dict):
                self._engine(engine)
        if "runtimes" in document:
            document["runtimes"] = long_forms(document["runtimes"])
        runtimes = document.get("runtimes")
        for runtime in runtimes.values() if isinstance(runtimes, dict) else ():
            if isinstance(runtime, dict):
                self._text(runtime, "python", lambda text: "/" in text)
                self._text(runtime, "index", is_path)
                self._references(runtime)
        gateway = document.get("gateway")
        if isinstance(gateway, dict):
            self._gateway(gateway)

    def _gateway(self, gateway: dict[str, Any]) -> None:
        api_keys, keys = gateway.get("api_keys"), gateway.get("keys")
        if isinstance(api_keys, list):
            gateway["api_keys"] = [self._reference(key) for key in api_keys]
        for key in keys if isinstance(keys, list) else ():
            if isinstance(key, dict) and "key" in key:
                key["key"] = self._reference(key["key"])
        sessions = gateway.get("sessions")
        if isinstance(sessions, dict) and "url" in sessions:
            sessions["url"] = self._reference(sessions["url"])

    def _engine(self, engine: dict[str, Any]) -> None:
        self._text(engine, "model", is_path)
        self._text(engine, "cwd", lambda text: True)
        if "lora" in engine:
            engine["lora"] = anchored(engine["lora"], self._absolute)
        self._references(engine)
        command = engine.get("command")
        if "cwd" in engine or self._is_portable or not isinstance(command, list):
            return
        words = [word for word in command if isinstance(word, str) and word and not os.path.isabs(word)]
        if any((self._folder / word).is_file() for word in words):
            engine["cwd"] = str(self._folder)

    def _references(self, holder: dict[str, Any]) -> None:
        env = holder.get("env")
        if isinstance(env, dict):
            holder["env"] = {key: self._reference(value) for key, value in env.items()}
        if "api_key" in holder:
            holder["api_key"] = self._reference(holder["api_key"])

    def _reference(self, value: Any) -> Any:
        return anchor_file_references(value, self._absolute) if isinstance(value, str) else value

    def _text(self, holder: dict[str, Any], key: str, applies: Callable[[str], bool]) -> None:
        value = holder.get(key)
        if isinstance(value, str) and value and not value.startswith("${") and applies(value):
            holder[key] = self._absolute(value)

    def _absolute(self, text: str) -> str:
        return absolute(text, self._folder)


def is_path(model: str) -> bool:
    """Whether `model` names a directory of this host rather than a model of the hub."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..")


def absolute(text: str, folder: Path) -> str:
    """`text` as a path relative to `folder`, with ~ expanded, without . and .."""
    return os.path.normpath(folder / os.path.expanduser(text))
