"""The line in which requests of one pool wait while every replica is full: who is next, who is turned away.

Pure: times are what the caller's clock says, in seconds. Under every policy an ask has one rank, from the
moment it arrived to PATIENCE_S after it, which no time changes: whoever comes more than PATIENCE_S later is
behind it, so nobody starves.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf

PRIORITIES = {b"HIGH": 0, b"NORMAL": 1, b"LOW": 2}

PATIENCE_S = 30.0
# What one class of priority is worth: a NORMAL ask goes before every HIGH one that comes this much later.
AGEING_S = 10.0
# About what an engine takes for one token of an answer.
TOKEN_S = 0.01
# Embeddings that go in one run, so that the engine has a batch to compute.
EMBEDDING_BATCH = 8


@dataclass(slots=True, eq=False)
class Ask:
    """A request that waits. `arrived` and `deadline` are moments of the caller's clock, `cost` is in tokens.

    `elsewhere` is how many seconds after it arrived it had spent not in a line but held, or at an engine that
    was lost: they count for its rank, and not as waiting.
    `owner` is the caller's. Nothing but `owner` may change while it waits. `place` is the line's own: None
    while it does not wait.
    """

    arrived: float
    priority: int = 1
    deadline: float = inf
    cost: float = 0.0
    is_embedding: bool = False
    elsewhere: float = 0.0
    owner: object = None
    place: "Place | None" = field(default=None, init=False, repr=False)


def _came(ask: Ask) -> float:
    return ask.arrived + ask.elsewhere


# Sorted from last to first, since a list is cheap to pop at its end: minus the rank, minus the order of
# coming, which is unique, so that asks themselves are never compared.
Place = tuple[float, int, Ask]


def _by_arrival(ask: Ask) -> float:
    return ask.arrived


def _by_priority(ask: Ask) -> float:
    return ask.arrived + ask.priority * AGEING_S


def _by_deadline(ask: Ask) -> float:
    return min(max(ask.arrived, ask.deadline), ask.arrived + PATIENCE_S)


def _by_cost(ask: Ask) -> float:
    return ask.arrived + min(ask.cost * TOKEN_S, PATIENCE_S)


_RANKS: dict[str, Callable[[Ask], float]] = {
    "fifo": _by_arrival,
    "priority": _by_priority,
    "slo_aware": _by_deadline,
    "cost_optimized": _by_cost,
    "hybrid": _by_priority,
}
POLICIES = frozenset({*_RANKS, "adaptive"})


class Line:
    """At most `size` asks, and which of them is next by `policy`, one of POLICIES.

    `effective` is the policy that is at work: that which "adaptive" chose, else the policy itself. Sorted
    lists rather than heaps: the last one is needed as well when the line is full, and to move a few thousand
    pointers costs less than a comparison in Python.
    """

    __slots__ = (
        "_batch_left",
        "_came",
        "_embeddings",
        "_first_came",
        "_first_deadline",
        "_main",
        "_policy",
        "_rank",
        "_since_switch",
        "_urgent",
        "effective",
        "size",
    )

    def __init__(self, policy: str, size: int) -> None:
        self.size = size
        self._main: list[Place] = []
        self._embeddings: list[Place] = []
        self._batch_left = EMBEDDING_BATCH
        self._came = 0
        self._urgent = 0
        # No ask came earlier, no deadline is earlier than these; they may be those of asks that left.
        self._first_came = self._first_deadline = inf
        self.policy = policy

    def __len__(self) -> int:
        return len(self._main) + len(self._embeddings)

    def __iter__(self) -> Iterator[Ask]:
        for places in (self._main, self._embeddings):
            for place in places:
                yield place[2]

    @property
    def policy(self) -> str:
        return self._policy

    @policy.setter
    def policy(self, policy: str) -> None:
        self._policy = policy
        self._switch("fifo" if policy == "adaptive" else policy)
        if policy == "adaptive":
            self._since_switch = len(self._main)
            self._adapt()

    def push(self, ask: Ask) -> Ask | None:
        """Lets `ask` wait. A full line turns the last one away, perhaps `ask` itself, and returns it."""
        self._came += 1
        self._enter(ask, self._came)
        self._first_came = min(self._first_came, _came(ask))
        self._first_deadline = min(self._first_deadline, ask.deadline)
        refused = None
        if len(self._main) + len(self._embeddings) > self.size:
            # Of the longer one, lest a flood of embeddings keep out all chat.
            places = self._main if len(self._main) > len(self._embeddings) else self._embeddings
            refused = self._leave(places.pop(0))
        if self._policy == "adaptive":
            self._adapt()
        return refused

    def pop(self) -> Ask | None:
        """Who is next, None if nobody waits."""
        if self._embeddings and (self._batch_left > 0 or not self._main):
            self._batch_left -= 1
            return self._leave(self._embeddings.pop())
        if not self._main:
            return None
        self._batch_left = EMBEDDING_BATCH
        ask = self._leave(self._main.pop())
        if self._policy == "adaptive":
            self._adapt()
        return ask

    def remove(self, ask: Ask) -> None:
        """Takes out an ask of this line whose client left; nothing happens if it does not wait any more."""
        place = ask.place
        if place is not None:
            places = self._places(ask)
            del places[bisect_left(places, place)]
            self._leave(place)

    def overdue(self, now: float, timeout: float) -> list[Ask]:
        """Takes out those whose deadline has come, or who have waited for `timeout` seconds in lines.

        Costs nothing while nobody can be; looks at everyone else.
        """
        if self._first_deadline > now and self._first_came + timeout > now:
            return []
        late = [ask for ask in self if ask.deadline <= now or _came(ask) + timeout <= now]
        for ask in late:
            self.remove(ask)
        self._first_came = min((_came(ask) for ask in self), default=inf)
        self._first_deadline = min((ask.deadline for ask in self), default=inf)
        return late

    def _enter(self, ask: Ask, came: int) -> None:
        places = self._places(ask)
        rank = ask.arrived if places is self._embeddings else self._rank(ask)
        ask.place = place = (-rank, -came, ask)
        insort(places, place)
        self._urgent += ask.deadline < ask.arrived + PATIENCE_S

    def _leave(self, place: Place) -> Ask:
        """Settles what is kept about an ask whose place was taken out."""
        ask = place[2]
        ask.place = None
        self._urgent -= ask.deadline < ask.arrived + PATIENCE_S
        return ask

    def _places(self, ask: Ask) -> list[Place]:
        return self._embeddings if ask.is_embedding and self.effective == "hybrid" else self._main

    def _adapt(self) -> None:
        """Goes by deadlines while somebody has one, by cost from a quarter full down to an eighth, else by
        arrival. Sorts anew only after as many pushes and pops as there are to sort: cheap on the whole."""
        self._since_switch += 1
        waiting = len(self._main)
        wanted = "fifo"
        if self._urgent:
            wanted = "slo_aware"
        elif waiting * (8 if self.effective == "cost_optimized" else 4) > self.size:
            wanted = "cost_optimized"
        if wanted != self.effective and self._since_switch >= waiting:
            self._switch(wanted)

    def _switch(self, effective: str) -> None:
        """Gives everyone who waits a place by another policy; the order of coming stays."""
        places = self._main + self._embeddings
        self._main, self._embeddings = [], []
        self._since_switch = self._urgent = 0
        self.effective, self._rank = effective, _RANKS[effective]
        for _, came, ask in places:
            self._enter(ask, -came)
