"""The stack as it runs, read back from the launches themselves: for commands that are given no file."""

from collections import defaultdict
from dataclasses import replace

from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import (
    DesiredEngine,
    DesiredState,
    EngineState,
    HealthSpec,
    Kind,
    LaunchSpec,
    LiveSpec,
    PlacementSpec,
    ProbeKind,
    ReplicaId,
    RouteSpec,
    fingerprint,
)
from sage_reconcile.model.observed import ObservedLaunch, ObservedState
from sage_reconcile.model.routing import Backend
from sage_reconcile.plan.classify import primary
from sage_reconcile.route.adapters import published_adapters


def as_desired(stack: str, observed: ObservedState, stopped: frozenset[str] = frozenset()) -> DesiredState:
    """What runs of `stack`, as if a file asked for it; the engines of `stopped` as if it asked for none."""
    launches: dict[str, list[ObservedLaunch]] = defaultdict(list)
    for launch in observed.launches:
        if launch.replica.stack == stack:
            launches[launch.replica.engine].append(launch)
    engines = [_engine(name, own, observed, name in stopped) for name, own in launches.items()]
    published = observed.routing.backends if observed.routing else ()
    engines += [
        _external(backend, observed)
        for backend in published
        if backend.stack == stack and backend.is_external and backend.engine not in launches
    ]
    return DesiredState(stack, tuple(sorted(engines, key=lambda engine: engine.name)))


def as_it_runs(stack: str, observed: ObservedState) -> DesiredState:
    """What runs of a stack, to come back to: on the ports where it runs, for a file may have pinned them."""
    desired = as_desired(stack, observed)
    ports = {one.replica: one.mark.placement.port for one in observed.launches if one.replica.stack == stack}

    def placed(engine: DesiredEngine) -> DesiredEngine:
        own = [ports.get(ReplicaId(stack, engine.name, number)) for number in range(engine.replicas)]
        first = own[0] or 0
        is_row = first and own == list(range(first, first + engine.replicas))
        return replace(engine, placement=PlacementSpec(port=first)) if is_row else engine

    return replace(desired, engines=tuple(map(placed, desired.engines)))


def _external(backend: Backend, observed: ObservedState) -> DesiredEngine:
    """An engine that is not sage's own, as it was published: commands without a file leave its routes be."""
    kind = Kind(backend.kind)
    probe = ProbeKind.EMBED if kind is Kind.EMBEDDING else ProbeKind.GENERATE
    launch = LaunchSpec(kind, "external", backend.model, url=backend.url, api_key=backend.api_key or None)
    return DesiredEngine(
        name=backend.engine,
        launch=launch,
        route=_route({backend.id}, observed, (backend.engine, backend.model)),
        live=LiveSpec(HealthSpec(probe)),
        fingerprint=fingerprint(launch),
    )


def _engine(
    name: str, launches: list[ObservedLaunch], observed: ObservedState, is_stopped: bool
) -> DesiredEngine:
    launch = primary(launches, None)
    assert launch is not None
    mark = launch.mark
    return DesiredEngine(
        name=name,
        launch=mark.spec,
        route=_route({one.mark.id for one in launches}, observed, (mark.spec.model, name)),
        live=launch.live or LiveSpec(),
        replicas=1 + max(one.replica.replica for one in launches),
        state=EngineState.STOPPED if is_stopped else EngineState.RUNNING,
        fingerprint=mark.fingerprint,
        lora=_adapters(launch, observed),
    )


def _adapters(launch: ObservedLaunch, observed: ObservedState) -> tuple[Adapter, ...] | None:
    """The adapters that sage has published, hence loaded; others came by the engine's own flags."""
    ours = published_adapters(observed.routing, launch.mark.id)
    found = tuple(adapter for adapter in launch.adapters or () if adapter.name in ours)
    return found or None


def _route(ids: set[str], observed: ObservedState, names: tuple[str, ...]) -> RouteSpec:
    """The route as it was published last; the engine's own names where it was never published."""
    table = observed.routing
    routes = [r for r in table.routes if ids.intersection(r.backends) and not r.model] if table else []
    backend = next((b for b in table.backends if b.id in ids), None) if table else None
    if not routes or backend is None:
        return RouteSpec(tuple(sorted(set(names))))
    return RouteSpec(
        names=tuple(sorted(route.name for route in routes)),
        weight=backend.weight,
        max_concurrent=backend.max_concurrent,
        policy=routes[0].policy,
        hold=routes[0].hold,
        metadata=routes[0].metadata,
        queue_policy=routes[0].queue_policy,
        queue_size=routes[0].queue_size,
        queue_timeout=routes[0].queue_timeout,
        first_byte_timeout=routes[0].first_byte_timeout,
        idle_timeout=routes[0].idle_timeout,
    )
