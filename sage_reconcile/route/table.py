"""Which model name goes to which running engine: a pure function of what is wanted and what is seen."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState, ReplicaId
from sage_reconcile.model.observed import Health, ObservedLaunch, ObservedState
from sage_reconcile.model.routing import Backend, Route, RoutingTable, external_id
from sage_reconcile.route.adapters import adapter_pools, loaded, published_adapters

READY, DRAINING, PENDING = "ready", "draining", "pending"


def routing_table(
    desired: DesiredState, observed: ObservedState, draining: Collection[str] = frozenset()
) -> RoutingTable:
    """The routes and backends of this stack as they are to be now, beside those of other stacks as published.

    `draining` are backend ids that get no new requests. A name that another stack offers stays with the stack
    that sorts first; `route_notes` tells of it.
    """
    parts = _Parts.of(desired, observed, frozenset(draining))
    routes = [route for route in parts.foreign_routes if route.name not in parts.names_taken_over]
    routes += [route for route in parts.routes if route.name not in parts.names_lost]
    backends = [*parts.foreign_backends, *parts.backends]
    return RoutingTable(
        routes=tuple(sorted(routes, key=lambda route: route.name)),
        backends=tuple(sorted(backends, key=lambda backend: backend.id)),
    )


def route_notes(desired: DesiredState, observed: ObservedState) -> tuple[str, ...]:
    """What the table does that its reader may not expect, one sentence each, sorted."""
    parts = _Parts.of(desired, observed, frozenset())
    owners = {route.name: route.stack for route in parts.foreign_routes}
    notes = [
        f"model name {name!r} stays with stack {owners[name]!r}, which offers it too; "
        f"give the engine of stack {desired.stack!r} another label or alias"
        for name in parts.names_lost
    ]
    notes += [
        f"model name {name!r} is taken over from stack {owners[name]!r}, which offers it too"
        for name in parts.names_taken_over
    ]
    for name, (first, *others) in _claims(desired).items():
        notes += [
            f"model name {name!r} goes to engine {first.name!r} only: engine {other.name!r} serves "
            f"another {'kind' if other.launch.kind != first.launch.kind else 'model'} by this name"
            for other in others
            if not _are_alike(first, other)
        ]
    removed = _names_removed(desired, observed)
    notes += [f"routes removed: {', '.join(removed)}"] if removed else []
    return tuple(sorted(notes))


def _names_removed(desired: DesiredState, observed: ObservedState) -> list[str]:
    """Names that this stack has published and offers no more, of engines that are not there: no step of the
    plan ends them."""
    published = observed.routing or RoutingTable()
    stay = {route.name for route in routing_table(desired, observed).routes}
    there = {launch.mark.id for launch in observed.launches}
    there |= {backend.id for backend in published.backends if backend.is_external}
    return [
        route.name
        for route in published.routes
        if route.stack == desired.stack and route.name not in stay and not there.intersection(route.backends)
    ]


@dataclass(frozen=True, slots=True)
class _Parts:
    """The table before names that two stacks offer are settled."""

    stack: str
    backends: tuple[Backend, ...]
    routes: tuple[Route, ...]
    foreign_backends: tuple[Backend, ...]
    foreign_routes: tuple[Route, ...]

    @classmethod
    def of(cls, desired: DesiredState, observed: ObservedState, draining: frozenset[str]) -> "_Parts":
        published = observed.routing or RoutingTable()
        served = [
            *_launched(desired, observed, draining),
            *_unseen(desired, observed, draining),
            *_external(desired, observed, draining),
        ]
        return cls(
            stack=desired.stack,
            backends=tuple(item.backend for item in served),
            routes=tuple(_routes(desired, served)),
            foreign_backends=tuple(b for b in published.backends if b.stack != desired.stack),
            foreign_routes=tuple(r for r in published.routes if r.stack != desired.stack),
        )

    @property
    def _contested(self) -> list[Route]:
        ours = {route.name for route in self.routes}
        return [route for route in self.foreign_routes if route.name in ours]

    @property
    def names_lost(self) -> frozenset[str]:
        return frozenset(route.name for route in self._contested if route.stack < self.stack)

    @property
    def names_taken_over(self) -> frozenset[str]:
        return frozenset(route.name for route in self._contested if route.stack > self.stack)


@dataclass(frozen=True, slots=True)
class _Served:
    """A backend, the engine that it serves (None when it serves none any more), the spec's model, and the
    names of the adapters that it has loaded."""

    backend: Backend
    engine: DesiredEngine | None
    model: str
    adapters: frozenset[str] = frozenset()


def _launched(desired: DesiredState, observed: ObservedState, draining: frozenset[str]) -> Iterator[_Served]:
    before = _states_before(observed)
    launches = {
        launch.mark.id: launch for launch in observed.launches if launch.replica.stack == desired.stack
    }
    primaries = _primaries(desired, launches.values(), draining)
    for backend_id, launch in launches.items():
        mark, engine = launch.mark, _wanted(desired, launch.replica.engine)
        state = _launch_state(launch, primaries, before)
        backend = Backend(
            id=backend_id,
            stack=mark.replica.stack,
            engine=mark.replica.engine,
            replica=mark.replica.replica,
            url=mark.placement.url,
            model=mark.model,
            kind=mark.spec.kind.value,
            state=DRAINING if engine is None or backend_id in draining else state,
            node=mark.placement.node,
        )
        if engine is not None:
            route = engine.route
            backend = replace(backend, weight=route.weight, max_concurrent=route.max_concurrent)
        yield _Served(backend, engine, mark.spec.model, loaded(engine, launch, observed.routing))


def _unseen(desired: DesiredState, observed: ObservedState, draining: frozenset[str]) -> Iterator[_Served]:
    """Backends as published whose launches could not be looked for: not seen is not absent."""
    blind_nodes = {gap.node for gap in observed.gaps if gap.what in ("processes", "node")}
    blind_replicas = {gap.what for gap in observed.gaps}
    seen = {launch.mark.id for launch in observed.launches}
    for backend in (observed.routing or RoutingTable()).backends:
        replica = str(ReplicaId(backend.stack, backend.engine, backend.replica))
        is_blind = backend.node in blind_nodes or replica in blind_replicas
        if backend.stack != desired.stack or not backend.node or backend.id in seen or not is_blind:
            continue
        engine = _wanted(desired, backend.engine)
        is_leaving = engine is None or backend.id in draining
        model = engine.launch.model if engine else backend.model
        backend = replace(backend, state=DRAINING) if is_leaving else backend
        yield _Served(backend, engine, model, published_adapters(observed.routing, backend.id))


def _wanted(desired: DesiredState, engine_name: str) -> DesiredEngine | None:
    """The engine that a launch serves. A replica too many serves on until it is withdrawn."""
    engine = desired.engine(engine_name)
    if engine is None or engine.state is EngineState.STOPPED or engine.launch.is_external:
        return None
    return engine


def _primaries(
    desired: DesiredState, launches: Iterable[ObservedLaunch], draining: frozenset[str]
) -> frozenset[str]:
    """One ready launch of each replica: that of the desired fingerprint, else the newest.

    While a new one is not ready the outdated one goes on serving. Once it is, the switch is whole: clients
    never see a mix.
    """
    best: dict[ReplicaId, tuple[bool, float, str]] = {}
    for launch in launches:
        if launch.health is not Health.READY or launch.mark.id in draining:
            continue
        engine = desired.engine(launch.replica.engine)
        is_current = engine is not None and engine.is_embodied_by(launch.mark.fingerprint, launch.mark.spec)
        rank = (is_current, launch.supervisor_started, launch.mark.id)
        best[launch.replica] = max(rank, best.get(launch.replica, rank))
    return frozenset(launch_id for _, _, launch_id in best.values())


def _launch_state(launch: ObservedLaunch, primaries: frozenset[str], before: dict[str, str]) -> str:
    if launch.health is Health.READY:
        return READY if launch.mark.id in primaries else DRAINING
    if launch.health is Health.EXITED:
        return DRAINING
    if launch.health is Health.UNKNOWN:
        return before.get(launch.mark.id, PENDING)  # not seen is not absent
    return PENDING


def _external(desired: DesiredState, observed: ObservedState, draining: frozenset[str]) -> Iterator[_Served]:
    before = _states_before(observed)
    seen = {external.engine: external.health for external in observed.external}
    for engine in desired.engines:
        if not engine.launch.is_external or engine.state is EngineState.STOPPED:
            continue
        backend_id = external_id(desired.stack, engine.name)
        health = seen.get(engine.name, Health.UNKNOWN)
        # No answer in time may be a busy engine: it keeps what it had.
        is_ready = health is Health.READY or (health is Health.UNKNOWN and before.get(backend_id) == READY)
        state = READY if is_ready else PENDING
        backend = Backend(
            id=backend_id,
            stack=desired.stack,
            engine=engine.name,
            replica=0,
            url=engine.launch.base_url,
            model=engine.launch.model,
            kind=engine.launch.kind.value,
            state=DRAINING if backend_id in draining else state,
            weight=engine.route.weight,
            max_concurrent=engine.route.max_concurrent,
            api_key=engine.launch.api_key or "",
        )
        yield _Served(backend, engine, engine.launch.model)


def _states_before(observed: ObservedState) -> dict[str, str]:
    return {b.id: b.state for b in (observed.routing or RoutingTable()).backends}


def _claims(desired: DesiredState) -> dict[str, list[DesiredEngine]]:
    """The engines that offer each model name, by engine name; the first one's settings are the route's."""
    claims: dict[str, list[DesiredEngine]] = {}
    for engine in sorted(desired.engines, key=lambda engine: engine.name):
        if engine.state is not EngineState.STOPPED:
            for name in engine.route.names:
                claims.setdefault(name, []).append(engine)
    return claims


def _are_alike(first: DesiredEngine, other: DesiredEngine) -> bool:
    """Whether a client may get its answer from either."""
    return (first.launch.kind, first.launch.model) == (other.launch.kind, other.launch.model)


def _routes(desired: DesiredState, served: Collection[_Served]) -> Iterator[Route]:
    """One route per model name. An engine that has no launch yet has its routes all the same, so that the
    gateway holds requests instead of denying that the model exists."""
    claims = _claims(desired)
    owners = {name: engines[0] for name, engines in claims.items()}
    pools: dict[str, set[str]] = {name: set() for name in claims}
    for item in sorted(served, key=lambda item: item.backend.id):
        engine = item.engine
        if engine is None:
            continue
        for name in _names(engine, item):
            if name not in claims:
                owners.setdefault(name, engine)
                pools.setdefault(name, set()).add(item.backend.id)
            elif engine in claims[name] and _are_alike(owners[name], engine):
                pools[name].add(item.backend.id)
    for name, owner in owners.items():
        yield _route(desired.stack, name, owner, pools[name])
    for name, owner, backends in adapter_pools(desired, served):
        yield replace(_route(desired.stack, name, owner, backends), model=name)


def _route(stack: str, name: str, owner: DesiredEngine, backends: Collection[str]) -> Route:
    return Route(
        name=name,
        kind=owner.launch.kind.value,
        backends=tuple(sorted(backends)),
        policy=owner.route.policy,
        hold=owner.route.hold,
        metadata=owner.route.metadata,
        stack=stack,
        queue_policy=owner.route.queue_policy,
        queue_size=owner.route.queue_size,
        queue_timeout=owner.route.queue_timeout,
        first_byte_timeout=owner.route.first_byte_timeout,
        idle_timeout=owner.route.idle_timeout,
        on_demand=owner.name if owner.on_demand else "",
    )


def _names(engine: DesiredEngine, item: _Served) -> frozenset[str]:
    """The model names that a backend may answer to.

    An outdated launch of another model serves the engine's labels and aliases until the switch, but never the
    new model's own name; the name of the model that it does serve stays for as long as it serves.
    """
    names = frozenset(engine.route.names)
    new_name = engine.launch.model
    if item.model == new_name or new_name not in names:
        return names
    kept = {item.model} if item.backend.state == READY else set()
    return (names - {new_name}) | kept
