"""Hosts for the control-plane classes: a FakeWorld behind the doors of a real SAGE_HOME."""

import json
from pathlib import Path

from sage_reconcile.converge import Host
from sage_reconcile.home import Home
from tests.build import node
from tests.e2e.world import engine
from tests.fakes import FakeWorld


def fake_host(folder: Path, gpus: int = 2) -> tuple[Host, FakeWorld]:
    """A host with so many empty GPUs of 80 GiB, and what there is on it."""
    world = FakeWorld([node(gpus=gpus)])
    home = Home(folder / "home").ensure()
    return Host(home, world, world), world


def fake_runtime(home: Home) -> Path:
    """adhoc.yaml with the runtime `fake`: tests/fake_engine.py, so that engines are real processes."""
    path = home.adhoc_file
    path.parent.mkdir(parents=True, exist_ok=True)
    runtime = {"kind": "command", "command": engine("any")["command"]}
    path.write_text(f"version: 1\nname: adhoc\nruntimes:\n  fake: {json.dumps(runtime)}\nengines: []\n")
    return path
