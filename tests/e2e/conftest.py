"""Worlds for the tests of this folder."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.world import World


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Callable[[str], World]]:
    """Makes worlds by name, each with a SAGE_HOME of its own; whatever runs in them is ended afterwards."""
    made: list[World] = []

    def make(name: str) -> World:
        folder = tmp_path / name
        made.append(World(folder, folder / "home"))
        return made[-1]

    yield make
    for world in made:
        world.tidy()


@pytest.fixture
def world(worlds: Callable[[str], World]) -> World:
    """One world."""
    return worlds("work")


@pytest.fixture
def automatic_ports() -> Iterator[None]:
    """For tests that let sage choose ports: they are the host's, so one such test runs at a time."""
    path = Path(tempfile.gettempdir()) / f"sage-tests-automatic-ports-{os.getuid()}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
