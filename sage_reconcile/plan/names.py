"""Which model names each engine is given, where several engines or stacks offer the same one."""

from collections import defaultdict
from dataclasses import dataclass

from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState
from sage_reconcile.model.routing import RoutingTable


@dataclass(frozen=True, slots=True)
class Names:
    """The names that lead to an engine, sorted, and those of them whose route has this engine's settings."""

    given: tuple[str, ...] = ()
    owned: frozenset[str] = frozenset()


NO_NAMES = Names()


def given_names(desired: DesiredState, table: RoutingTable | None) -> dict[str, Names]:
    """By engine. The first engine by name that offers a name owns it; those that serve another model by it
    do not get it, nor does a stack that sorts after another one that has published it."""
    lost = {r.name for r in table.routes if r.stack and r.stack < desired.stack} if table else set()
    owners: dict[str, DesiredEngine] = {}
    given: dict[str, list[str]] = defaultdict(list)
    for engine in sorted(desired.engines, key=lambda one: one.name):
        if engine.state is EngineState.STOPPED:
            continue
        for name in engine.route.names:
            owner = owners.setdefault(name, engine)
            same = (owner.launch.kind, owner.launch.model) == (engine.launch.kind, engine.launch.model)
            if same and name not in lost:
                given[engine.name].append(name)
    return {
        engine: Names(tuple(sorted(names)), frozenset(n for n in names if owners[n].name == engine))
        for engine, names in given.items()
    }
