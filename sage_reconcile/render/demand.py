"""What the status tells of engines on demand: those without a process, too, and when each was asked for."""

from typing import Any

from sage_reconcile.model.observed import Demand, ObservedState
from sage_reconcile.plan.classify import duration

NOT_LOADED = "on demand"
"""The state of an engine that is loaded when somebody asks for it, and is not loaded now."""


def on_demand(observed: ObservedState) -> dict[tuple[str, str], Demand]:
    """The published engines on demand by stack and name, with what the gateway tells of them."""
    told = {(one.stack, one.engine): one for one in observed.demand or ()}
    routes = observed.routing.routes if observed.routing else ()
    keys = sorted({(route.stack, route.on_demand) for route in routes if route.on_demand})
    return {key: told.get(key, Demand(*key)) for key in keys}


def not_loaded(observed: ObservedState) -> list[Demand]:
    """Those of them that have no process."""
    there = {(launch.replica.stack, launch.replica.engine) for launch in observed.launches}
    return [told for key, told in on_demand(observed).items() if key not in there]


def demand_data(told: Demand | None, at: float) -> dict[str, Any]:
    """The fields of `sage status --json`; seconds are null where no request is known of."""
    seconds = round(max(0.0, at - told.last), 1) if told is not None and told.last else None
    return {"on_demand": told is not None, "asked_seconds_ago": seconds}


def not_loaded_data(told: Demand, at: float) -> dict[str, Any]:
    return {"engine": told.engine, "stack": told.stack, "state": NOT_LOADED, **demand_data(told, at)}


def asked_words(told: Demand | None, at: float) -> str:
    """ ", asked 5 min ago" behind the state of an engine on demand, "" where there is nothing to tell."""
    return f", asked {duration(at - told.last)} ago" if told is not None and told.last else ""
