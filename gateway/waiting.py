"""Who waits for a backend: held while none is ready, in the line of a pool while all are busy."""

import math
from typing import TYPE_CHECKING

from gateway.errors import hopeless_deadline, line_full, no_backend, nobody_loads, waited_too_long
from gateway.line import PRIORITIES, Ask

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.fleet import Pool
    from gateway.lane import Lane

# How long a request waits before it tries again backends that failed it.
RETRY_S = 0.5
# The longest deadline that is believed, in ms: a day.
_MAX_DEADLINE_MS = 86_400_000
_EMBEDDING_PATHS = frozenset(
    {b"/v1/embeddings", b"/v1/rerank", b"/rerank", b"/v2/rerank", b"/v1/score", b"/score", b"/pooling"}
    | {b"/classify"}
)
# A token of the answer costs an engine about as much as so many of the prompt.
_PROMPT_TOKENS_PER_ANSWER_TOKEN = 10
# What is taken for the length of an answer where the request sets no limit, in tokens.
_USUAL_ANSWER = 256


class Waiting:
    """Everybody who waits in this worker."""

    def __init__(self, lane: "Lane") -> None:
        self._lane = lane
        self.held: dict[Exchange, None] = {}

    def hold(self, exchange: "Exchange", now: float) -> None:
        """Waits for a backend to be ready, for as long as the route says in all; 503 after that."""
        assert exchange.plan is not None
        route = exchange.plan.route
        deadline = _deadline(exchange)
        if deadline <= now:
            exchange.refuse(hopeless_deadline(route.name))
            return
        if not exchange.hold_until:
            exchange.hold_until = now + route.hold
        if route.on_demand and self._lane.demand.is_forsaken(route.stack, now):
            exchange.refuse(nobody_loads(route.name, route.stack))
            return
        if now >= exchange.hold_until:
            faults = [member.fault for member in exchange.plan.pool.members if member.fault]
            exchange.refuse(no_backend(route.name, route.hold, exchange.reason or "; ".join(faults)))
            return
        exchange.waits_since = now
        exchange.retry_at = min(now + RETRY_S if exchange.avoid else math.inf, deadline)
        exchange.meter.held += 1
        self.held[exchange] = None
        if route.on_demand:
            self._lane.demand.ask(now)

    def queue(self, exchange: "Exchange", now: float) -> None:
        """Waits for a place at a backend; 429 for whoever finds no place in the line."""
        assert exchange.plan is not None
        exchange.hold_until = 0.0
        exchange.waits_since = now
        exchange.ask = ask = _ask(exchange, now)
        if ask.deadline <= now:
            exchange.ask = None
            exchange.refuse(hopeless_deadline(exchange.asked.model))
            return
        exchange.meter.queued += 1
        turned_away = exchange.plan.pool.line.push(ask)
        if turned_away is not None:
            other: Exchange = turned_away.owner  # type: ignore[assignment]
            self._leave_line(other, now)
            other.refuse(line_full(other.asked.model, exchange.plan.route.queue_size))

    def forget(self, exchange: "Exchange") -> None:
        """It waits no more, wherever it waited."""
        now = self._lane.time()
        if exchange.ask is not None:
            assert exchange.plan is not None
            exchange.plan.pool.line.remove(exchange.ask)
            self._leave_line(exchange, now)
        elif exchange in self.held:
            self._leave_hold(exchange, now)

    def serve(self, pool: "Pool") -> None:
        """A place may be free: sends who is next in line."""
        now = self._lane.time()
        while any(member.is_ready and member.in_flight < member.limit for member in pool.members):
            ask = pool.line.pop()
            if ask is None:
                return
            exchange: Exchange = ask.owner  # type: ignore[assignment]
            self._leave_line(exchange, now)
            exchange.dispatch(is_called=True)
            if exchange.ask is not None:
                return  # the place that is free is none for this one

    def table_changed(self, waited: list["Exchange"]) -> None:
        """Everybody tries again, `waited` (who had been in a line) first."""
        now = self._lane.time()
        for exchange in waited:
            self._leave_line(exchange, now)
            exchange.dispatch(is_called=True)
        for exchange in list(self.held):
            if exchange in self.held:
                self._leave_hold(exchange, now)
                exchange.avoid = ()
                exchange.dispatch()

    def sweep(self) -> None:
        """Ends waits that took too long, and lets those try again whose time has come."""
        now = self._lane.time()
        for exchange in list(self.held):
            if exchange in self.held and (
                now >= min(exchange.retry_at, exchange.hold_until) or self._is_forsaken(exchange, now)
            ):
                self._leave_hold(exchange, now)
                exchange.avoid = ()
                exchange.dispatch()
        for pool in self._lane.fleet.pools:
            if not len(pool.line):
                continue
            for ask in pool.line.overdue(now, pool.route.queue_timeout):
                other: Exchange = ask.owner  # type: ignore[assignment]
                self._leave_line(other, now)
                is_hopeless = ask.deadline <= now
                other.refuse(
                    hopeless_deadline(other.asked.model)
                    if is_hopeless
                    else waited_too_long(other.asked.model, pool.route.queue_timeout)
                )
            self.serve(pool)

    def _is_forsaken(self, exchange: "Exchange", now: float) -> bool:
        route = exchange.plan.route if exchange.plan else None
        return route is not None and route.on_demand != "" and self._lane.demand.is_forsaken(route.stack, now)

    def _leave_line(self, exchange: "Exchange", now: float) -> None:
        exchange.ask = None
        exchange.meter.queued -= 1
        exchange.queued_s += now - exchange.waits_since

    def _leave_hold(self, exchange: "Exchange", now: float) -> None:
        del self.held[exchange]
        exchange.meter.held -= 1
        exchange.held_s += now - exchange.waits_since


def _ask(exchange: "Exchange", now: float) -> Ask:
    asked, seen = exchange.asked, exchange.asked.seen
    answer = asked.max_tokens or _USUAL_ANSWER
    is_embedding = asked.path in _EMBEDDING_PATHS
    prompt = asked.size / 4 / _PROMPT_TOKENS_PER_ANSWER_TOKEN
    return Ask(
        arrived=exchange.started,
        priority=PRIORITIES.get(seen.get(b"x-request-priority", b"NORMAL").upper(), PRIORITIES[b"NORMAL"]),
        deadline=_deadline(exchange),
        cost=prompt if is_embedding else prompt + answer,
        is_embedding=is_embedding,
        elsewhere=now - exchange.started - exchange.queued_s,
        owner=exchange,
    )


def _deadline(exchange: "Exchange") -> float:
    """When the request is of no use any more, by its own word."""
    deadline_ms = _number(exchange.asked.seen.get(b"x-slo-deadline-ms", b""))
    return exchange.started + deadline_ms / 1000 if deadline_ms else math.inf


def _number(text: bytes) -> float:
    """Milliseconds, 0 where the header is missing or says nothing sensible."""
    return float(min(int(text), _MAX_DEADLINE_MS)) if text.isdigit() and len(text) < 12 else 0.0
