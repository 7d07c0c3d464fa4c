"""The backends of the routing table as they are now: who may be asked, how busy, and how well they answer."""

import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from gateway.line import Line
from gateway.member import Member
from gateway.meters import Meters, RouteMeter
from gateway.pick import pick
from sage_reconcile.model.routing import Route, RoutingTable

if TYPE_CHECKING:
    from gateway.exchange import Exchange


class Pool:
    """The backends that share the requests of one or more model names, and who waits while all are busy."""

    def __init__(self, members: tuple[Member, ...], route: Route, queue_policy: str) -> None:
        self.members = members
        self.route = route
        self.line = Line(queue_policy, route.queue_size)


class Plan:
    """One model name as the table has it: the route, and the pool that answers for it."""

    def __init__(self, route: Route, pool: Pool, turns: Iterator[int], meter: RouteMeter) -> None:
        self.route = route
        self.pool = pool
        self.meter = meter
        self.ready = [member for member in pool.members if member.is_ready]
        self._turns = turns

    def choose(self, key: bytes, avoid: Collection[Member], now: float) -> Member | None:
        """The backend that gets a request now, or None if none has room. `key` is for the affinity policies.

        One that keeps failing is asked only while there is no other, not even a busy one to wait for.
        """
        ready = self.ready
        if len(ready) == 1:
            only = ready[0]
            return only if only.in_flight < only.limit and only not in avoid else None
        asked = [member for member in ready if member not in avoid]
        well = [member for member in asked if not member.is_ejected(now)] or asked
        usable = [member for member in well if member.in_flight < member.limit]
        return pick(self.route.policy, usable, key, next(self._turns), random.random()) if usable else None

    def has_other(self, avoid: Collection[Member], now: float) -> bool:
        """Whether there is a backend that answers and is not in `avoid`, be it one to wait for."""
        return any(member not in avoid and not member.is_ejected(now) for member in self.ready)

    def is_busy(self, avoid: Collection[Member]) -> bool:
        """Whether there is a backend to wait for: ready, and not in `avoid`."""
        return any(member not in avoid for member in self.ready)


class Fleet:
    """All plans by model name, and all members by backend id; those that left the table stay while busy."""

    def __init__(self, meters: Meters, workers: int) -> None:
        self.plans: dict[str, Plan] = {}
        self.members: dict[str, Member] = {}
        self.pools: list[Pool] = []
        # Those whose engine is loaded when it is asked for.
        self.on_demand: list[Plan] = []
        # The policy that an administrator has set for all lines, or "" for those of the table.
        self.queue_policy = ""
        self._meters = meters
        self._workers = workers
        self._turns: dict[str, Iterator[int]] = {}

    def load(self, table: RoutingTable) -> list["Exchange"]:
        """Takes over a new table; gives who waited in a line of the old one, in the order of arrival."""
        waited = [exchange for pool in self.pools for exchange in _waiting(pool)]
        listed = {backend.id for backend in table.backends}
        for member in self.members.values():
            member.is_known = member.is_known and member.id in listed
        for backend in table.backends:
            member = self.members.get(backend.id) or Member(backend, self._meters.backend(backend))
            member.renew(backend, self._workers)
            self.members[backend.id] = member
        self._forget_idle()
        self._plan(table)
        return sorted(waited, key=lambda exchange: exchange.started)

    def set_queue_policy(self, policy: str) -> None:
        """Serves every line by this policy, whatever the table says; "" gives it back to the table."""
        self.queue_policy = policy
        for pool in self.pools:
            pool.line.policy = policy or pool.route.queue_policy

    def leaving(self) -> Mapping[str, int]:
        """Requests in flight by id, of backends that get no new ones."""
        return {
            member.id: member.in_flight
            for member in self.members.values()
            if member.in_flight and not member.is_accepting
        }

    def _plan(self, table: RoutingTable) -> None:
        pools: dict[tuple[str, ...], Pool] = {}
        self.plans = {}
        for route in table.routes:
            members = tuple(self.members[backend_id] for backend_id in route.backends)
            pool = pools.get(route.backends)
            if pool is None:
                pool = pools[route.backends] = Pool(members, route, self.queue_policy or route.queue_policy)
            turns = self._turns.setdefault(route.name, itertools.count())
            self.plans[route.name] = Plan(route, pool, turns, self._meters.route(route.name))
        self.pools = list(pools.values())
        self.on_demand = [plan for plan in self.plans.values() if plan.route.on_demand]
        self._turns = {name: self._turns[name] for name in self.plans}
        for member in self.members.values():
            member.pools = tuple(pool for pool in self.pools if member in pool.members)

    def _forget_idle(self) -> None:
        for backend_id, member in list(self.members.items()):
            if not member.is_known:
                member.close_idle()
                if not member.in_flight:
                    del self.members[backend_id]


def _waiting(pool: Pool) -> Iterable["Exchange"]:
    while (ask := pool.line.pop()) is not None:
        exchange: Exchange = ask.owner  # type: ignore[assignment]
        exchange.ask = None
        yield exchange
