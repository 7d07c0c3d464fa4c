"""Environments of a test's own: a real Python, in front of whose packages stand made-up ones."""

import sys
import textwrap
from pathlib import Path


class Environment:
    """`python` runs; packages are added with their metadata, and modules with their code."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.site.mkdir(parents=True)
        self.python = folder / "bin" / "python"
        self.python.parent.mkdir()
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH={self.site} exec {sys.executable} "$@"\n')
        self.python.chmod(0o755)

    def package(self, name: str, version: str, *requires: str, module: str = "") -> "Environment":
        """Installed as pip would record it; `module` is a file that it brings."""
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        extras = {text.partition("extra == ")[2].strip("\"'") for text in requires if "extra ==" in text}
        lines += [f"Provides-Extra: {extra}" for extra in sorted(extras)]
        lines += [f"Requires-Dist: {text}" for text in requires]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        (folder / "RECORD").write_text(f"{module},,\n" if module else "")
        return self

    def module(self, path: str, code: str = "") -> "Environment":
        file = self.site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(code))
        return self
