"""The wheel of the sage that runs: enough of it for the embedding server in an environment of its own."""

import re
import zipfile
from importlib import metadata
from pathlib import Path

from sage_reconcile.runtimes.ownwheel import write_wheel
from sage_reconcile.version import __version__


def test_it_holds_the_server_and_names_what_that_needs(tmp_path: Path) -> None:
    path = write_wheel(tmp_path)
    assert path.name == f"sage_reconcile-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        [record] = [name for name in names if name.endswith("/RECORD")]
        listed = [line.split(",")[0] for line in wheel.read(record).decode().splitlines()]
        about = wheel.read(record.replace("RECORD", "METADATA")).decode()
    assert "sage_reconcile/embedding/server.py" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("gateway")]
    assert sorted(listed) == sorted(names)
    needs = set(re.findall(r"^Requires-Dist: ([\w-]+)", about, re.M))
    assert {"litestar", "uvicorn"} <= needs
    assert not needs & {"torch", "pytest"}
    assert needs == {
        found[0]
        for need in metadata.requires("sage-reconcile") or ()
        if "extra ==" not in need and (found := re.match(r"[\w-]+", need))
    }
