"""A gateway that manages engines of a home of its own; whatever runs there ends with the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sage_reconcile.home import Home
from tests.control.world import fake_runtime
from tests.e2e.world import World
from tests.gateway.world import Gateway


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A SAGE_HOME whose adhoc.yaml has the runtime `fake`."""
    made = World(tmp_path / "work", tmp_path / "work" / "home")
    fake_runtime(Home(made.home))
    yield made
    made.tidy()


@pytest.fixture
def gateway(world: World) -> Iterator[Gateway]:
    """Without keys, as on a laptop."""
    with Gateway(world.home, environ={"SAGE_DISABLE_NVML": "1"}) as running:
        yield running
