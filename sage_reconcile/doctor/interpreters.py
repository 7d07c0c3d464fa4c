"""Which Python environments engines would be started in, and what each must have."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sage_reconcile.apply.environment import INHERITED, PREFIXES
from sage_reconcile.home import Home
from sage_reconcile.model.desired import DesiredState, Device, LaunchSpec
from sage_reconcile.observe.programs import is_whole

# By kind of runtime: what must be installed, with the extra that it serves by; what an engine imports first.
NEEDS = {
    "vllm": "vllm",
    "transformers": "transformers[serving]",
    "sentence-transformers": "sentence-transformers",
}
IMPORTS = {
    "vllm": ("vllm",),
    "transformers": ("torch", "transformers"),
    "sentence-transformers": ("sentence_transformers", "sage_reconcile.embedding.server"),
}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One environment. `called` is how a person knows it, `kind` "" where nothing says what it is for.

    `python` is "" where there is none; `on_gpu`: an engine of the stack wants a GPU with it; `is_installed`:
    sage itself builds it, from the version in the stack file.
    """

    called: str
    kind: str
    python: str
    wanted: str = ""
    env: tuple[tuple[str, str], ...] = ()
    on_gpu: bool = False
    is_installed: bool = False


def interpreters(home: Home, desired: DesiredState | None) -> tuple[Interpreter, ...]:
    """Those of the stack's engines, then whatever else lies in $SAGE_HOME/runtimes. Each one once."""
    found: dict[tuple[str, str], Interpreter] = {}
    for engine in desired.engines if desired else ():
        spec = engine.launch
        if spec.runtime not in NEEDS:
            continue
        wanted, python = _python(spec, home)
        one = Interpreter(f"runtime {spec.runtime}", spec.runtime, python, wanted, spec.env)
        if spec.program is not None:
            one = replace(one, called=f"runtime {spec.runtime} {spec.program.version}", is_installed=True)
        if spec.python is not None:
            one = replace(one, called=f"runtime {spec.runtime} ({spec.python})")
        known = found.setdefault((spec.runtime, wanted), one)
        on_gpu = known.on_gpu or spec.device is not Device.CPU
        found[spec.runtime, wanted] = replace(known, on_gpu=on_gpu)
    for folder in _folders(home.runtimes):
        own = is_whole(folder)
        kind = next(
            (name for name in NEEDS if folder.name == name or (own and folder.name.startswith(f"{name}-"))),
            "",
        )
        wanted = str(folder / "bin" / "python")
        python = wanted if shutil.which(wanted) else ""
        one = Interpreter(f"runtime {folder.name}", kind, python, wanted, is_installed=own)
        if not any(known.wanted == wanted for known in found.values()):
            found[kind, wanted] = one
    return tuple(found.values())


def environment_of(one: Interpreter, environ: Mapping[str, str]) -> dict[str, str]:
    """What an engine would inherit, with the file's plain variables; secrets are left out."""
    env = {name: value for name, value in environ.items() if name in INHERITED or name.startswith(PREFIXES)}
    env |= {name: value for name, value in one.env if "${" not in value}
    return env | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _python(spec: LaunchSpec, home: Home) -> tuple[str, str]:
    """(where it is looked for, where it is): as `apply` chooses it."""
    if spec.program is not None:
        path = str(home.runtimes / spec.program.folder(spec.runtime) / "bin" / "python")
        return path, shutil.which(path) or ""
    if spec.python is not None:
        return spec.python, shutil.which(spec.python) or ""
    own = home.runtimes / spec.runtime / "bin" / "python"
    if own.exists():
        return str(own), shutil.which(str(own)) or ""
    return "python3", shutil.which("python3") or ""


def _folders(path: Path) -> list[Path]:
    try:
        entries = (entry for entry in path.iterdir() if not entry.name.startswith("."))
        return sorted(entry for entry in entries if entry.is_dir() or entry.is_symlink())
    except OSError:
        return []
