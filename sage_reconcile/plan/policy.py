"""What the caller adds to a plan: which engines, which to leave alone for now, which to restart."""

from dataclasses import dataclass

from sage_reconcile.model.desired import ReplicaId


@dataclass(frozen=True, slots=True)
class Policy:
    """`targets`: only these engines (and nothing else of the stack) are planned; None means all.

    `hold`: replicas that wait, with the reason (a watcher's backoff). `restart`: engines that get a new
    process although nothing changed. `stop_cause`: why engines whose state is stopped end, in words.
    `preload`: whether engines on demand that are to be preloaded are.
    """

    targets: frozenset[str] | None = None
    hold: tuple[tuple[ReplicaId, str], ...] = ()
    restart: frozenset[str] = frozenset()
    stop_cause: str = "state: stopped"
    preload: bool = True
