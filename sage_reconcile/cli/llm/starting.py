"""Starting engines: their entries in adhoc.yaml, and what is said when they run."""

import asyncio
from collections.abc import Mapping
from typing import Any

from sage_reconcile import adhoc
from sage_reconcile.apply.execute import Options
from sage_reconcile.cli.llm.carry import Carried, Carrier, Fields, Wish
from sage_reconcile.control.entries import entry
from sage_reconcile.home import Home
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.observe.look import LocalEyes


def start_engine(name: str, fields: Mapping[str, Any], flags: Mapping[str, Any]) -> int:
    """Starts one engine; the exit status."""
    home = Home.from_environ().claim()

    def decide(observed: ObservedState) -> Fields:
        return {name: entry(home, name, fields, observed)}

    carried = Carrier(home, wish(decide, flags)).run()
    if carried.is_done:
        tell(home, carried)
    return carried.status


def wish(decide: Any, flags: Mapping[str, Any]) -> Wish:
    """`flags` as the commands have them: yes, dry_run, no_wait, timeout."""
    options = Options(wait=not flags["no_wait"], timeout=flags["timeout"])
    return Wish(decide, flags["yes"], flags["dry_run"], options=options)


def tell(home: Home, carried: Carried) -> None:
    """Where the engines answer, once they do."""
    observed = asyncio.run(LocalEyes(home).look())
    for launch in observed.launches:
        mark = launch.mark
        if mark.replica.stack == adhoc.STACK and mark.replica.engine in carried.engines:
            print(
                f"{mark.replica.short} is {launch.health}: {mark.spec.model} at {mark.placement.url}/v1"
                f" (log: sage llm logs {mark.replica.engine})"
            )
