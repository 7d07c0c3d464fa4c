"""SAGE_HOME: where records, logs, routes and history lie. Standard library only."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one SAGE_HOME. Nothing in it is the truth about what runs."""

    root: Path

    @classmethod
    def from_environ(cls) -> "Home":
        """$SAGE_HOME, else ~/.sage; made on first use, mode 0700."""
        return cls(Path(os.environ.get("SAGE_HOME") or "~/.sage").expanduser().absolute())

    def ensure(self) -> "Home":
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    @property
    def run(self) -> Path:
        return self.root / "run"

    def replica_dir(self, stack: str, engine: str, replica: int) -> Path:
        return self.run / stack / f"{engine}.{replica}"

    def launch_dir(self, stack: str, engine: str, replica: int, launch: str) -> Path:
        """Where one launch keeps launch.json, exit.json, live.json and engine.log."""
        return self.replica_dir(stack, engine, replica) / launch

    @property
    def routing_file(self) -> Path:
        return self.root / "routing" / "routing.json"

    @property
    def history(self) -> Path:
        return self.root / "history"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def lock_file(self) -> Path:
        return self.root / "apply.lock"

    @property
    def models(self) -> Path:
        """Model directories, `<models>/<organisation>/<name>`: used before the hub's cache."""
        return self.root / "models"

    @property
    def runtimes(self) -> Path:
        """Python environments of engines, `<runtimes>/<runtime name>/bin/python`."""
        return self.root / "runtimes"
