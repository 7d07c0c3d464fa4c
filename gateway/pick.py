"""Which replica gets the next request: a pure function of values."""

import hashlib
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, TypeVar

POLICIES = frozenset({"least_inflight", "round_robin", "prefix_affinity", "session_affinity"})

# A replica that a key leads to is passed over when it has more than this in flight, in shares of what it
# would have if all were even. Below FREE_LOAD nothing is passed over: so few requests are no imbalance.
MAX_IMBALANCE = 1.25
FREE_LOAD = 4

_GOLDEN = (math.sqrt(5) - 1) / 2
_64_BITS = (1 << 64) - 1


class Candidate(Protocol):
    """A replica that may be sent a request. `weight` is 1 or more."""

    @property
    def id(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def weight(self) -> int: ...


C = TypeVar("C", bound=Candidate)


def pick(policy: str, candidates: Sequence[C], key: bytes, turn: int, draw: float) -> C:
    """The candidate that gets the next request; there must be one.

    `turn` is a number that grows by one per request, `draw` a random one from 0 to below 1. `key` is what a
    policy of affinity goes by (see gateway.affinity); without one the least busy is taken.
    """
    count = len(candidates)
    if count == 1:
        return candidates[0]
    if policy == "round_robin":
        return _in_turn(candidates, turn)
    if key and policy != "least_inflight":
        return _by_key(candidates, key)
    return _lesser(candidates, turn) if count == 2 else _lesser_of_two_drawn(candidates, draw)


def _lesser(candidates: Sequence[C], turn: int) -> C:
    """The one of two with fewer requests per weight; ties go in turn."""
    one, other = candidates
    load, other_load = one.in_flight * other.weight, other.in_flight * one.weight
    if load == other_load:
        return _in_turn(candidates, turn)
    return one if load < other_load else other


def _lesser_of_two_drawn(candidates: Sequence[C], draw: float) -> C:
    """Power of two choices: of two drawn by weight, the one with fewer requests per weight, or the first.

    Workers and bursts do not all run to the one that was least busy a moment ago. One draw is enough for
    both: where it falls within the share of the first is a draw again.
    """
    total = 0
    for candidate in candidates:
        total += candidate.weight
    place = draw * total
    first = candidates[-1]
    for candidate in candidates:
        if place < candidate.weight:
            first = candidate
            break
        place -= candidate.weight
    place = place / first.weight * (total - first.weight)
    second = first
    for candidate in candidates:
        if candidate is first:
            continue
        second = candidate
        if place < candidate.weight:
            break
        place -= candidate.weight
    return second if second.in_flight * first.weight < first.in_flight * second.weight else first


def _in_turn(candidates: Sequence[C], turn: int) -> C:
    """Each as often as its weight in any run of turns as long as the sum of weights, and spread over it."""
    total = 0
    for candidate in candidates:
        total += candidate.weight
    place = turn * _stride(total) % total
    for candidate in candidates:
        place -= candidate.weight
        if place < 0:
            return candidate
    raise AssertionError("unreachable: place was below the sum of the weights")


@lru_cache(maxsize=256)
def _stride(total: int) -> int:
    """A step that meets every place below `total` once, neighbours far apart: weights of 100 and 100 must not
    send a hundred requests in a row to one replica."""
    step = max(1, round(total * _GOLDEN))
    while math.gcd(step, total) != 1:
        step += 1
    return step


def _by_key(candidates: Sequence[C], key: bytes) -> C:
    """Rendezvous hashing: the best rank of those that do not have too much to do.

    A rank depends on the key and that replica alone, so that a replica that comes or goes moves no keys but
    its own. The logarithm makes the chance to rank first proportional to weight (an exponential race).
    """
    in_flight = total = 0
    for candidate in candidates:
        in_flight += candidate.in_flight
        total += candidate.weight
    even = MAX_IMBALANCE * in_flight / total
    code = zlib.crc32(key)
    best, best_rank = candidates[0], -math.inf
    for candidate in candidates:
        load = candidate.in_flight
        if load > FREE_LOAD and load > even * candidate.weight + 1:
            continue
        rank = math.log(_mixed(code ^ _seed(candidate.id))) / candidate.weight
        if rank > best_rank:
            best, best_rank = candidate, rank
    return best


@lru_cache(maxsize=4096)
def _seed(candidate_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(candidate_id.encode(), digest_size=8).digest())


def _mixed(number: int) -> float:
    """A number above 0 and at most 1 in which every bit of 64 counts.

    Needed since CRC is linear: codes that differ by the same bits would rank replicas in the same few orders.
    The constants are those of the splitmix64 generator.
    """
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _64_BITS
    return ((number ^ number >> 31) + 1) / (_64_BITS + 1)
