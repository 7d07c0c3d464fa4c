"""Starting engines: their entries in adhoc.yaml, and what is said when they run."""

import asyncio
from collections.abc import Mapping
from typing import Any

from sage_reconcile import adhoc
from sage_reconcile.apply.execute import Options
from sage_reconcile.cli.llm.carry import Carried, Carrier, Fields, Wish, as_cpu
from sage_reconcile.errors import PermanentError
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


def entry(home: Home, name: str, fields: Mapping[str, Any], observed: ObservedState) -> dict[str, Any]:
    """What is laid over the engine's entry; a stopped one runs again.

    Raises PermanentError where the name belongs to another model.
    """
    known = adhoc.entries(home).get(name)
    if known is None:
        is_llm = fields.get("kind", "llm") == "llm"
        return as_cpu(fields, observed) if is_llm else dict(fields)
    if known.get("model") != fields.get("model", known.get("model")):
        raise PermanentError(
            f"the engine {name} of {home.adhoc_file} serves {known.get('model')}: choose another --name, "
            f"or take it out with `sage llm engine remove {name}`"
        )
    return {**fields, "state": "running"} if "state" in known else dict(fields)


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
