"""This sage as a wheel: its embedding server runs in the environment of sentence-transformers."""

import zipfile
from importlib import metadata
from pathlib import Path

from sage_reconcile.version import __version__

DISTRIBUTION = "sage_reconcile"
_PACKAGE = Path(__file__).resolve().parents[1]


def write_wheel(folder: Path) -> Path:
    """Writes the wheel into `folder`, without what only the command line needs of other packages (extras).

    Made of the files that run here: it need not be on an index, and is of the same version as the host's.
    """
    version = __version__.replace("-", ".")
    path = folder / f"{DISTRIBUTION}-{version}-py3-none-any.whl"
    info = f"{DISTRIBUTION}-{version}.dist-info"
    files = {
        f"{_PACKAGE.name}/{file.relative_to(_PACKAGE)}": file.read_bytes()
        for file in sorted(_PACKAGE.rglob("*"))
        if file.is_file() and file.suffix in (".py", ".typed")
    }
    files[f"{info}/METADATA"] = _metadata(version).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: sage\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return path


def _metadata(version: str) -> str:
    needs = [need for need in metadata.requires("sage-reconcile") or () if "extra ==" not in need]
    head = ["Metadata-Version: 2.1", "Name: sage-reconcile", f"Version: {version}"]
    return "\n".join([*head, *(f"Requires-Dist: {need}" for need in needs)]) + "\n"
