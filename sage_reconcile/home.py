"""SAGE_HOME: where records, logs, routes and history lie. Whose it is."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from sage_reconcile.errors import BlockedError

WOKEN = "woken"
"""A file in the folder of a launch: its time is when the engine was woken last."""


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one SAGE_HOME. Nothing in it is the truth about what runs."""

    root: Path

    @classmethod
    def from_environ(cls) -> "Home":
        """$SAGE_HOME, else ~/.sage; made on first use, mode 0700."""
        return cls(Path(os.environ.get("SAGE_HOME") or "~/.sage").expanduser().absolute())

    def claim(self) -> "Home":
        """For whoever is about to change something. Raises BlockedError where the folder is not this user's:
        processes of another user are not ours, and what we wrote there that user could not change."""
        if reason := self.denied():
            raise BlockedError(
                f"{reason}; run sage as that user, make the folder yours (chown -R), "
                "or set SAGE_HOME to a folder of your own"
            )
        return self

    def denied(self) -> str:
        """Why what runs of this SAGE_HOME cannot be seen by this user, or "": a folder that is not there yet
        is nobody's."""
        try:
            owner = self.root.stat().st_uid
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            return f"SAGE_HOME {self.root} cannot be looked at: {error.strerror}"
        return "" if owner == os.getuid() else f"SAGE_HOME {self.root} belongs to {user_name(owner)}"

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
    def facts(self) -> Path:
        """What was measured of launches, one file a fact."""
        return self.root / "facts"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def adhoc_file(self) -> Path:
        """The stack file that imperative commands edit."""
        return self.root / "stacks" / "adhoc.yaml"

    @property
    def lock_file(self) -> Path:
        return self.root / "apply.lock"

    @property
    def models(self) -> Path:
        """Model directories, `<models>/<organisation>/<name>`: used before the hub's cache."""
        return self.root / "models"

    @property
    def runtimes(self) -> Path:
        """Python environments of engines: `<runtimes>/<runtime>`, made elsewhere, mostly a link, and
        `<runtimes>/<runtime>-<version>-<digest>`, built by sage."""
        return self.root / "runtimes"


def user_name(uid: int) -> str:
    """The user's name, or the number where it has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
