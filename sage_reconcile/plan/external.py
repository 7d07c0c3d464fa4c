"""Engines that sage does not own: all that it can change of them is where the gateway sends requests."""

from collections.abc import Iterator

from sage_reconcile.model.actions import Reroute, Step, Verdict
from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState, ReplicaId
from sage_reconcile.model.observed import Health, ObservedState
from sage_reconcile.model.routing import Backend, RoutingTable, external_id
from sage_reconcile.plan.difference import change, route_differences
from sage_reconcile.plan.names import Names


def external_differences(
    table: RoutingTable | None, replica: ReplicaId, engine: DesiredEngine, names: Names
) -> tuple[str, ...]:
    """What the published table says of an external engine and the file does not."""
    table = table or RoutingTable()
    backend_id = external_id(replica.stack, replica.engine)
    entry = next((backend for backend in table.backends if backend.id == backend_id), None)
    if engine.state is EngineState.STOPPED:
        return (_ending(entry, table),) if entry else ()
    if entry is None:
        return (f"(none) -> {', '.join(names.given)}",) if names.given else ()
    launch = engine.launch
    found = (
        change("url", entry.url, launch.base_url),
        change("model", entry.model, launch.model),
        change("kind", entry.kind, launch.kind.value),
        change("api_key", entry.api_key, launch.api_key or ""),
        *route_differences(table, backend_id, engine.route, names),
    )
    return tuple(text for text in found if text)


def reroute_step(replica: ReplicaId, cause: str, changes: tuple[str, ...]) -> Step:
    return Step(f"update:{replica.short}", Verdict.UPDATE, replica, cause, (Reroute(),), changes=changes)


def steps_for_left(desired: DesiredState, table: RoutingTable | None) -> Iterator[Step]:
    """Ends the routes of engines that were external, and are now stopped or not in the file any more."""
    table = table or RoutingTable()
    for backend in sorted(table.backends, key=lambda one: one.id):
        engine = desired.engine(backend.engine)
        is_planned = engine and (engine.launch.is_external or engine.state is not EngineState.STOPPED)
        if backend.stack != desired.stack or not backend.is_external or is_planned:
            continue
        ending = _ending(backend, table)
        cause = f"{'state: stopped' if engine else 'no longer in the stack file'}; route: {ending}"
        yield reroute_step(ReplicaId(backend.stack, backend.engine, 0), cause, (ending,))


def external_notes(observed: ObservedState) -> tuple[str, ...]:
    """The external engines that give no good answer: nothing that a plan can mend."""
    return tuple(
        f"{one.engine} (external) {one.message}"
        for one in sorted(observed.external, key=lambda one: one.engine)
        if one.health is not Health.READY
    )


def _ending(backend: Backend, table: RoutingTable) -> str:
    names = sorted(route.name for route in table.routes if backend.id in route.backends)
    return f"{', '.join(names) or backend.url} -> (none)"
