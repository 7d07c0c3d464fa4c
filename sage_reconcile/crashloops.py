"""Engines that end again and again: a watcher starts them no more until their file changes. Pure.

The supervisor restarts an engine by its `restart` settings; when it has given up, its launch is over, and
whoever started it anew would only begin the loop again. Nothing is stored: a new watcher is a new chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sage_reconcile.model.desired import DesiredState, ReplicaId
from sage_reconcile.model.observed import LOST, Health, LastExit, ObservedState
from sage_reconcile.supervisor.exits import GAVE_UP
from sage_reconcile.supervisor.verdicts import OUTSIDE


@dataclass(slots=True)
class CrashLoops:
    """What a watcher remembers of the ends of launches. `holds` are the replicas it leaves alone, and why."""

    _document: Mapping[str, Any] | None = None
    _seen: dict[ReplicaId, LastExit] = field(default_factory=dict)
    _ends: dict[ReplicaId, list[float]] = field(default_factory=dict)
    _holds: dict[ReplicaId, str] = field(default_factory=dict)

    @property
    def holds(self) -> tuple[tuple[ReplicaId, str], ...]:
        return tuple(sorted(self._holds.items()))

    def note(
        self, observed: ObservedState, desired: DesiredState, document: Mapping[str, Any], now: float
    ) -> tuple[tuple[ReplicaId, str], ...]:
        """Takes a look; gives the replicas that are held from now on. `now` in seconds of any clock that is
        never set."""
        exits = {replica: end for replica, end in observed.exits if replica.stack == desired.stack}
        running = {one.replica for one in observed.launches if one.health is not Health.EXITED}
        for replica in running & self._holds.keys():
            del self._holds[replica]  # somebody started it by hand
        before = dict(self._holds)
        if document != self._document:
            self._document = document
            self._ends.clear()
            self._holds.clear()
        else:
            for replica, end in exits.items():
                if end != self._seen.get(replica) and replica not in running:
                    self._count(replica, end, desired, now)
        # Of a launch that still runs, only its last end counts.
        self._seen = {replica: end for replica, end in exits.items() if replica not in running} | {
            replica: end for replica, end in self._seen.items() if replica in running
        }
        return tuple(item for item in self.holds if item[0] not in before)

    def _count(self, replica: ReplicaId, end: LastExit, desired: DesiredState, now: float) -> None:
        engine = desired.engine(replica.engine)
        if engine is None or end.cause in (LOST, "stopped"):
            return
        if not end.was_ready and any(cause in end.cause for cause in OUTSIDE):
            return  # that may pass by itself; the watcher's backoff is enough
        restart = engine.live.restart
        ends = self._ends.setdefault(replica, [])
        if end.was_ready:
            ends[:] = [at for at in ends if now - at < restart.window]
        ends.append(now)
        if GAVE_UP in end.hint or len(ends) > restart.max_attempts:
            how = end.summary if GAVE_UP in end.hint else f"{end.summary}, {len(ends)} times"
            self._holds[replica] = (
                f"a crash loop, left alone: {how}; tried again when the file changes, "
                f"or by `sage apply` and `sage restart {replica.engine}`"
            )
