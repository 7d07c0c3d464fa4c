"""Everything runs; the label, the limits and the probes of the file are others."""

from dataclasses import replace

from sage_reconcile.model.desired import DesiredState, LiveSpec, RouteSpec
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.route.table import routing_table
from tests.build import desired as stack
from tests.build import launch_of
from tests.build import observed as state


def observed(desired: DesiredState) -> ObservedState:
    chat, embed = desired.engines
    names = tuple(sorted({"old-label", *chat.route.names} - {"new-label"}))
    before = stack(replace(chat, route=RouteSpec(names)), replace(embed, live=LiveSpec()))
    chat, embed = before.engines
    seen = state(launch_of(chat), launch_of(embed, id="l2", port=8090))
    return replace(seen, routing=routing_table(before, seen))
