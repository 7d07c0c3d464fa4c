"""A model's own files, found as the runtimes find them. What is not there is unknown, never a fault."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sage_reconcile.engines.modelfiles import model_files
from sage_reconcile.engines.registry import RUNTIMES
from sage_reconcile.home import Home
from sage_reconcile.model.desired import LaunchSpec
from sage_reconcile.model.modelfiles import ModelFiles
from sage_reconcile.observe import tensorfiles
from sage_reconcile.observe.tensorfiles import BadFile

MAX_CONFIG = 8 * 1024 * 1024

Signature = tuple[tuple[str, int, int], ...]


class ModelReader:
    """Reads models of one SAGE_HOME, and reads again only what has changed since."""

    def __init__(self, home: Home, environ: Mapping[str, str]) -> None:
        self._home = home
        self._environ = environ
        self._known: dict[Path, tuple[Signature, ModelFiles]] = {}

    def read(self, specs: Iterable[LaunchSpec]) -> tuple[ModelFiles, ...]:
        """One value for each model of an engine whose runtime reads model directories, by name."""
        wanted = {
            spec.model: {**self._environ, **_plain(spec.env)}
            for spec in specs
            if spec.runtime in RUNTIMES and RUNTIMES[spec.runtime].uses_model_directory
        }
        return tuple(self._read(model, environ) for model, environ in sorted(wanted.items()))

    def _read(self, model: str, environ: Mapping[str, str]) -> ModelFiles:
        path = find_model(model, self._home, environ)
        if path is None:
            return ModelFiles(model, unknown="its files are not on this host")
        try:
            signature = _signature(path)
            if path in self._known and self._known[path][0] == signature:
                return self._known[path][1]
            found = _read_model(model, path)
        except BadFile as error:
            found = ModelFiles(model, str(path), f"its files cannot be used: {error}")
        except OSError as error:
            return ModelFiles(model, str(path), f"its files cannot be read: {error.strerror or error}")
        self._known[path] = (signature, found)
        return found


def find_model(model: str, home: Home, environ: Mapping[str, str]) -> Path | None:
    """Where the model lies: a path as it is, SAGE_HOME/models, or the snapshot that the Hugging Face cache
    has for its main branch; None where it is in none of them."""
    if os.path.isabs(model):
        return Path(model) if os.path.exists(model) else None
    if ".." in model.split("/"):
        return None
    own = home.models / model
    if own.is_dir():
        return own
    folder = hub_cache(environ) / f"models--{model.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / revision
    return snapshot if revision and "/" not in revision and snapshot.is_dir() else None


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The cache of huggingface_hub: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/..., ~/.cache/..."""
    if stated := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(stated).expanduser()
    if stated := environ.get("HF_HOME"):
        return Path(stated).expanduser() / "hub"
    base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or "~", ".cache")
    return Path(base).expanduser() / "huggingface" / "hub"


def _plain(env: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """What the file sets for the engine, without references that are resolved at launch."""
    return {name: value for name, value in env if "${" not in value}


def _signature(path: Path) -> Signature:
    """Names, sizes and times of what lies there: cheap to take again at each look."""
    entries = [path] if path.is_file() else sorted(path.iterdir())[: tensorfiles.MAX_FILES]
    stats = ((entry.name, entry.stat()) for entry in entries if entry.exists())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _read_model(model: str, path: Path) -> ModelFiles:
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(model, path)
    if not path.is_dir():
        raise BadFile(f"{path.name} is neither a directory nor a GGUF file")
    config = path / "config.json"
    if not config.exists():
        quantised = sorted(path.glob("*.gguf"))
        if len(quantised) != 1:
            raise BadFile("there is no config.json")
        return _gguf(model, quantised[0])
    plain = tensorfiles.json_object(config, MAX_CONFIG)
    files = tensorfiles.safetensors_files(path)
    is_whole = all(file.exists() for file in files)  # a download that goes on: counted from the config
    tensors = (tensor for file in files for tensor in tensorfiles.safetensors_header(file))
    return model_files(model, plain, tensors if is_whole else (), str(path))


def _gguf(model: str, path: Path) -> ModelFiles:
    metadata, tensors = tensorfiles.gguf(path)
    return model_files(model, tensorfiles.gguf_config(metadata, tensors), tensors, str(path), is_gguf=True)
