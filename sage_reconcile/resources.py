"""Where the files that come with sage lie: in a wheel beside the package, in a checkout at its top."""

from pathlib import Path

from sage_reconcile.errors import PermanentError

_PACKAGE = Path(__file__).resolve().parent


def stacks_dir() -> Path:
    """The folder of the built-in stack files (presets)."""
    return _folder("stacks")


def schemas_dir() -> Path:
    """The folder of the JSON schemas."""
    return _folder("schemas")


def preset(name: str) -> Path:
    """The built-in stack file called `name`. Raises PermanentError, naming those that exist."""
    path = stacks_dir() / f"{name}.yaml"
    if name in presets():
        return path
    raise PermanentError(f'there is no preset "{name}"; the presets are {", ".join(presets())}')


def presets() -> tuple[str, ...]:
    """Names of the built-in stack files, sorted."""
    return tuple(sorted(path.stem for path in stacks_dir().glob("*.yaml")))


def _folder(name: str) -> Path:
    for folder in (_PACKAGE / "data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise PermanentError(f"the folder {name} that comes with sage is missing: install sage again")
