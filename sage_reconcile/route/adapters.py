"""Which backends answer for a LoRA adapter: those that have it loaded. Pure."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState
from sage_reconcile.model.observed import ObservedLaunch
from sage_reconcile.model.routing import Backend, RoutingTable


class Served(Protocol):
    """A backend, the engine that it serves, and the names of the adapters that it has loaded."""

    @property
    def backend(self) -> Backend: ...

    @property
    def engine(self) -> DesiredEngine | None: ...

    @property
    def adapters(self) -> frozenset[str]: ...


def loaded(
    engine: DesiredEngine | None, launch: ObservedLaunch, table: RoutingTable | None
) -> frozenset[str]:
    """The adapters of the file that the launch has loaded from where the file says. While it cannot be asked
    they are those that it was published with: not seen is not absent."""
    if engine is None:
        return frozenset()
    if launch.adapters is None:
        return published_adapters(table, launch.mark.id)
    return frozenset(adapter.name for adapter in engine.lora or () if adapter in launch.adapters)


def published_adapters(table: RoutingTable | None, backend: str) -> frozenset[str]:
    routes = table.routes if table else ()
    return frozenset(route.name for route in routes if route.model and backend in route.backends)


def adapter_pools(
    desired: DesiredState, served: Iterable[Served]
) -> Iterator[tuple[str, DesiredEngine, set[str]]]:
    """Each adapter with the engine whose settings its route has, and the backends that answer for it: none
    while it is loaded nowhere, so that requests are held. The same adapter of the same model makes a pool."""
    pools: dict[str, tuple[DesiredEngine, str, set[str]]] = {}
    for engine in sorted(desired.engines, key=lambda one: one.name):
        if engine.state is not EngineState.STOPPED:
            for adapter in engine.lora or ():
                pools.setdefault(adapter.name, (engine, adapter.path, set()))
    for item in served:
        for adapter in (item.engine.lora or ()) if item.engine else ():
            owner, path, backends = pools.get(adapter.name, (None, "", set()))
            if owner is None or item.engine is None or adapter.name not in item.adapters:
                continue
            if (owner.launch.model, path) == (item.engine.launch.model, adapter.path):
                backends.add(item.backend.id)
    for name, (owner, _, backends) in pools.items():
        yield name, owner, backends
