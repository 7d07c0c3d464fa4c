"""Ports: those of the file are honoured, automatic ones come from a range per kind."""

from sage_reconcile.model.desired import Kind
from sage_reconcile.model.observed import ObservedLaunch, ObservedState, Orphan

RANGES = {Kind.LLM: range(8901, 9000), Kind.EMBEDDING: range(8090, 8200)}


class Ports:
    """Which ports are taken on each node, by whom. A port goes to one launch only, also within a plan."""

    def __init__(self, observed: ObservedState, reserved: frozenset[int] = frozenset()) -> None:
        self._taken: dict[str, dict[int, str]] = {node.name: {} for node in observed.nodes}
        self._reserved = reserved
        self._pids: dict[tuple[str, int], int | None] = {}
        self._leaving: dict[tuple[str, int], str] = {}
        for node in observed.nodes:
            for holder in node.ports:
                who = f"process {holder.pid} ({holder.name})" if holder.pid else "a process of another user"
                self._taken[node.name][holder.port] = who
                self._pids[node.name, holder.port] = holder.pid
        for launch in observed.launches:
            place = launch.mark.placement
            self._taken.setdefault(place.node, {})[place.port] = launch.replica.short
        for foreign in observed.foreign:
            place = foreign.mark.placement
            self._taken.setdefault(place.node, {})[place.port] = f"{foreign.mark.replica} of {foreign.user}"

    def holder(self, node: str, port: int) -> str | None:
        """Who holds the port: a replica ("chat#0"), or a process in words; None when it is free."""
        return self._taken.get(node, {}).get(port)

    def freed_by(self, node: str, port: int) -> str | None:
        """The step after which the port is free, though it is held now."""
        return self._leaving.get((node, port))

    def take(self, node: str, port: int, who: str) -> None:
        self._taken.setdefault(node, {})[port] = who
        self._leaving.pop((node, port), None)

    def give_back(self, leaving: ObservedLaunch | Orphan, step: str) -> None:
        """`step` ends `leaving`, and with it what holds the port; a stranger on a leftover's port stays."""
        key = leaving.mark.placement.node, leaving.mark.placement.port
        if isinstance(leaving, ObservedLaunch) or self._pids.get(key) in leaving.pids:
            self._leaving[key] = step

    def automatic(self, node: str, kind: Kind) -> int | None:
        """The lowest free port of the kind's range that no engine pins; None when all are taken."""
        taken = self._taken.get(node, {})
        free = (port for port in RANGES[kind] if port not in taken and port not in self._reserved)
        return next(free, None)
