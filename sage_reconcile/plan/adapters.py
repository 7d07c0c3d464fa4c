"""LoRA adapters: which ones a running engine lacks, and which it should not have."""

from sage_reconcile.model.actions import Action, LoadLora, UnloadLora
from sage_reconcile.model.desired import DesiredEngine, EngineState
from sage_reconcile.model.observed import Health, ObservedLaunch
from sage_reconcile.model.routing import RoutingTable


def adapter_differences(
    engine: DesiredEngine, launch: ObservedLaunch, table: RoutingTable | None
) -> tuple[str, ...]:
    """What is loaded and should not be, or the other way, in words; () while the engine cannot be asked."""
    if not _can_change(engine, launch):
        return ()
    there = {adapter.name: adapter.path for adapter in launch.adapters or ()}
    shall = {adapter.name: adapter.path for adapter in engine.lora or ()}
    published = {route.name for route in table.routes if launch.mark.id in route.backends} if table else set()
    found = []
    for name in sorted(there.keys() | shall.keys()):
        old, new = there.get(name), shall.get(name)
        if old is None and name in published:
            found.append(f"{name}: no longer loaded -> {new}")
        elif old != new:
            found.append(f"{name}: {old or '(none)'} -> {new or '(none)'}")
    return tuple(found)


def adapter_actions(engine: DesiredEngine, launch: ObservedLaunch) -> tuple[Action, ...]:
    """What makes the adapters of a running engine those of the file. One that is on its way, or wakes, is
    asked for them once it answers."""
    if engine.lora is None or engine.state is not EngineState.RUNNING:
        return ()
    if not launch.mark.spec.takes_adapters:
        return ()
    if launch.health is Health.READY and launch.adapters is None:
        return ()
    there, shall = launch.adapters or (), engine.lora
    unload = tuple(UnloadLora(launch, adapter) for adapter in there if adapter not in shall)
    return *unload, *(LoadLora(adapter, launch) for adapter in shall if adapter not in there)


def _can_change(engine: DesiredEngine, launch: ObservedLaunch) -> bool:
    is_serving = engine.state is EngineState.RUNNING and launch.health is Health.READY
    return is_serving and launch.adapters is not None and engine.lora is not None
