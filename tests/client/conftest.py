"""A machine on which nothing of sage runs but what a test starts: own gateway port, own engine ports."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from sage_reconcile.client import discovery
from sage_reconcile.model.desired import Kind
from tests.client.world import Service
from tests.gateway.world import FakeEngine
from tests.processes import free_port

PORTS_PER_KIND = 4


@dataclass(frozen=True)
class Machine:
    """The ports at which the client looks on this machine."""

    gateway_port: int
    llm_ports: range
    embedding_ports: range


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in [name for name in os.environ if name.startswith(("SAGE_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    first = free_port(2 * PORTS_PER_KIND + 1)
    llm = range(first + 1, first + 1 + PORTS_PER_KIND)
    embedding = range(llm.stop, llm.stop + PORTS_PER_KIND)
    monkeypatch.setattr(discovery, "RANGES", {Kind.LLM: llm, Kind.EMBEDDING: embedding})
    monkeypatch.setenv("SAGE_GATEWAY_PORT", str(first))
    return Machine(first, llm, embedding)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever is entered here is left when the test ends."""
    with ExitStack() as entered:
        yield entered


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A gateway that serves the chat model `fake` and the embedding model `vec`."""
    with (
        FakeEngine() as chat,
        FakeEngine(model="vec") as vectors,
        Service(tmp_path_factory.mktemp("home")) as running,
    ):
        running.chat_url, running.embedding_url = chat.url, vectors.url
        running.serve_usual()
        yield running


@pytest.fixture
def usual_after(service: Service) -> Iterator[None]:
    """The test may let the gateway serve something else."""
    yield
    service.serve_usual()
