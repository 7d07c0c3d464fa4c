"""Which backend gets the next request: a pure function of values."""

from collections.abc import Mapping, Sequence

from sage_reconcile.model.routing import Backend


def pick(backends: Sequence[Backend], in_flight: Mapping[str, int], turn: int) -> Backend | None:
    """The backend with the fewest requests in flight per weight, or None if none may be used.

    `in_flight` is by backend id, 0 where missing. `turn` is a number that grows by one per request: ties go
    round-robin, in proportion to weight. A backend of weight 0 or less gets nothing.
    """
    usable = [backend for backend in backends if backend.weight > 0]
    if not usable:
        return None
    loads = [in_flight.get(backend.id, 0) / backend.weight for backend in usable]
    least = min(loads)
    tied = [backend for backend, load in zip(usable, loads, strict=True) if load == least]
    place = turn % sum(backend.weight for backend in tied)
    for backend in tied:
        if place < backend.weight:
            return backend
        place -= backend.weight
    raise AssertionError("unreachable: place is below the sum of the weights")
