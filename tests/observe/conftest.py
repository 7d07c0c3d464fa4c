from collections.abc import Iterator
from pathlib import Path

import pytest

from sage_reconcile.home import Home
from tests.observe.launches import Launches


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


@pytest.fixture
def launches(home: Home) -> Iterator[Launches]:
    found = Launches(home)
    yield found
    found.end()
