"""Real gateways and engines for the tests of this folder; whatever a test starts ends with it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage_reconcile import gatewayd
from sage_reconcile.gatewayd.processes import members
from sage_reconcile.home import Home
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


@pytest.fixture
def home(home_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home whose gateway, if a test leaves one, is ended; commands of sage use it."""
    monkeypatch.setenv("SAGE_HOME", str(home_root))
    for name in ("SAGE_API_KEYS", "SAGE_ADMIN_API_KEYS", "SAGE_GATEWAY_PORT", "SAGE_GATEWAY_HOST"):
        monkeypatch.delenv(name, raising=False)
    made = Home(home_root)
    yield made
    gatewayd.stop(made, force=True)
    assert members(made) == []
