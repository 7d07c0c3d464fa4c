"""How many requests a backend that left the routing table still has."""

import json

import psutil

from sage_reconcile.gatewayd.options import worker_records
from sage_reconcile.gatewayd.processes import find, is_marked
from sage_reconcile.home import Home


def in_flight(home: Home, backend_id: str, digest: str) -> int | None:
    """How many requests the gateway still has on a backend that its table does not offer as ready.

    `digest` is the first 12 hex digits of the sha256 of the routing table's bytes: a worker that has not
    loaded that table yet counts as 1, as it may still send requests there. None when no gateway of this home
    runs.
    """
    total, workers = 0, 0
    for pid, record in worker_records(home).items():
        try:
            if not is_marked(psutil.Process(pid), home):
                continue
        except psutil.NoSuchProcess:
            continue
        workers += 1
        try:
            told = json.loads(record.read_bytes())
            total += int(told["in_flight"].get(backend_id, 0)) if told["digest"] == digest else 1
        except (OSError, ValueError, KeyError):
            total += 1
    if workers:
        return total
    # A running gateway without a record (its folder was deleted) is not known to be drained.
    return None if find(home) is None else 1
