"""Which versions an engine runs: read from the environment that its Python lies in, never by running it."""

import contextlib
import os
from pathlib import Path

PACKAGES = {
    "vllm": ("torch", "vllm"),
    "transformers": ("torch", "transformers"),
    "sentence-transformers": ("sentence_transformers", "torch"),
}
"""What decides how much an engine takes and how long it needs, as the folders of its packages are named."""


def versions_of(runtime: str, pid: int) -> tuple[tuple[str, str], ...]:
    """(package, version) of the process, sorted; () where its environment is not known."""
    wanted = PACKAGES.get(runtime, ())
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        python = Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]))
        for folder in python.parent.parent.glob("lib/python3*/site-packages") if wanted else ():
            for entry in os.scandir(folder):
                name, _, rest = entry.name.partition("-")
                if name in wanted and rest.endswith(".dist-info"):
                    found[name.replace("_", "-")] = rest.removesuffix(".dist-info")
    return tuple(sorted(found.items()))
