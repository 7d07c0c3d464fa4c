"""One vLLM for all tests of this folder: a start of it takes more than a minute."""

from collections.abc import Iterator

import pytest

from tests.e2e.world import World
from tests.vllm.world import MissingError, Places, Served, vllm_world, write_stack


@pytest.fixture(scope="session")
def places() -> Places:
    try:
        return Places.found()
    except MissingError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, places: Places) -> Iterator[World]:
    with vllm_world(tmp_path_factory.mktemp("vllm"), places) as world:
        yield world


@pytest.fixture(scope="module")
def served(world: World, places: Places) -> Served:
    """The engine as every module finds it, whatever the one before has done to it."""
    write_stack(world, places.python, lora=[])  # ready for the tests of adapters, which then need no start
    return Served.by(world)
