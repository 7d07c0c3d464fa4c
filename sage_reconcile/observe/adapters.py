"""The LoRA adapters of a running engine, as it tells them itself."""

from sage_reconcile.model.adapters import Adapter
from sage_reconcile.observe.processes import LiveLaunch

LIST_SECONDS = 2.0


async def adapters_of(live: LiveLaunch) -> tuple[Adapter, ...] | None:
    """What the engine itself says it has loaded; None where it takes none, or does not say."""
    if not live.mark.spec.takes_adapters:
        return None
    from sage_reconcile.observe.probes import list_models

    status, entries = await list_models(live.mark.placement.url, LIST_SECONDS)
    if status != 200:
        return None
    # Only adapters have a parent; `root` is where they were loaded from.
    found = (Adapter(one["id"], str(one.get("root") or "")) for one in entries if one.get("parent"))
    return tuple(sorted(found))
