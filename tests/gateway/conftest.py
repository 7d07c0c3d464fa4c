"""Real gateways and engines for the tests of this folder; whatever a test starts ends with it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway.world import FakeEngine, Gateway, RecordingEngine


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever is entered here is left when the test ends."""
    with ExitStack() as entered:
        yield entered


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway without keys for the tests of a module; each test gives it its own table."""
    with Gateway(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    """A well-behaved engine with the model `fake`."""
    with FakeEngine() as running:
        yield running


@pytest.fixture
def recorder() -> Iterator[RecordingEngine]:
    with RecordingEngine() as running:
        yield running


@pytest.fixture
def home_root(tmp_path: Path) -> Path:
    return tmp_path / "home"
