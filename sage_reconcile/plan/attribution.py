"""Whose each byte of a GPU is, as NVML measures it now. In MiB; every GPU adds up to its size."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sage_reconcile.model.observed import GpuHolder, ObservedState
from sage_reconcile.plan.memory import Account, Ledger

LOCAL = ("127.0.0.1", "localhost", "[::1]")


class Owner(StrEnum):
    """LAUNCH: a launch of this SAGE_HOME. ADOPTED: an engine that is routed to and was not started by sage.
    ORPHANED: left by a launch of ours whose supervisor is gone. FOREIGN: a process that is seen and not ours.
    UNATTRIBUTED: in use, and NVML does not say by whom, or by a process that is not seen from here."""

    LAUNCH = "launch"
    ADOPTED = "adopted"
    ORPHANED = "orphaned"
    FOREIGN = "foreign"
    UNATTRIBUTED = "unattributed"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Share:
    """What one owner has of a GPU. `reserved_mib` is counted for a launch and not taken yet: it loads, or has
    not worked to its limit."""

    owner: Owner
    name: str
    mib: int
    reserved_mib: int = 0
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuShares:
    """One GPU and its shares, the free one last."""

    account: Account
    shares: tuple[Share, ...]


def attribution(observed: ObservedState) -> tuple[GpuShares, ...]:
    """All GPUs, in the order of the ledger."""
    known = _Owners(observed)
    return tuple(
        GpuShares(account, _shares(account, known)) for account in Ledger(observed).accounts.values()
    )


@dataclass(slots=True)
class _Sum:
    mib: int = 0
    reserved: int = 0
    pids: list[int] = field(default_factory=list)


def _shares(account: Account, known: "_Owners") -> tuple[Share, ...]:
    gpu = account.gpu
    sums: dict[tuple[Owner, str], _Sum] = defaultdict(_Sum)
    for holder in gpu.holders:
        of = sums[known.of(gpu.node, holder)]
        of.mib += holder.mib
        of.pids.append(holder.pid)
    told = sum(one.mib for one in sums.values())
    if gpu.used_mib > told:
        sums[Owner.UNATTRIBUTED, ""].mib += gpu.used_mib - told
    left = max(0, gpu.total_mib - max(told, gpu.used_mib))
    # Where NVML names no process of ours, the ledger takes what is in use for ours: it is not reserved again.
    reserved = max(0, left - max(0, account.free))
    for launch, counted in sorted(account.held.items()):
        if name := known.names.get(launch):
            of = sums[Owner.LAUNCH, name]
            more = min(reserved, max(0, counted - of.mib))
            of.reserved += more
            reserved -= more
            left -= more
    found = [
        Share(owner, name, one.mib, one.reserved, tuple(sorted(one.pids)))
        for (owner, name), one in sums.items()
        if one.mib or one.reserved
    ]
    found.sort(key=lambda share: (list(Owner).index(share.owner), share.name))
    return (*found, Share(Owner.FREE, "", left))


class _Owners:
    """Who a process that holds memory belongs to."""

    def __init__(self, observed: ObservedState) -> None:
        self.names = {one.mark.launch: str(one.replica) for one in observed.launches}
        self._pids: dict[tuple[str, int], tuple[Owner, str]] = {}
        for foreign in observed.foreign:
            name = f"{foreign.mark.replica} of {foreign.user}"
            self._put(foreign.mark.placement.node, foreign.pids, Owner.FOREIGN, name)
        for orphan in observed.orphans:
            self._put(orphan.mark.placement.node, orphan.pids, Owner.ORPHANED, str(orphan.replica))
        for launch in observed.launches:
            self._put(launch.mark.placement.node, launch.pids, Owner.LAUNCH, str(launch.replica))
        self._adopted = _adopted(observed)

    def of(self, node: str, holder: GpuHolder) -> tuple[Owner, str]:
        if not holder.name:
            return Owner.UNATTRIBUTED, ""
        if (known := self._pids.get((node, holder.pid))) is not None:
            return known
        for pid in (holder.pid, *holder.parents):
            if engine := self._adopted.get((node, pid)):
                return Owner.ADOPTED, engine
        return Owner.FOREIGN, holder.name

    def _put(self, node: str, pids: tuple[int, ...], owner: Owner, name: str) -> None:
        self._pids |= {(node, pid): (owner, name) for pid in pids}


def _adopted(observed: ObservedState) -> Mapping[tuple[str, int], str]:
    """The servers on this host that are routed to as external engines, by the process that listens."""
    ports: dict[int, str] = {}
    for backend in observed.routing.backends if observed.routing else ():
        host, _, port = backend.url.rpartition("://")[2].partition("/")[0].rpartition(":")
        if backend.is_external and host in LOCAL and port.isdigit():
            ports[int(port)] = f"{backend.stack}/{backend.engine}#{backend.replica}"
    return {
        (node.name, holder.pid): ports[holder.port]
        for node in observed.nodes
        for holder in node.ports
        if holder.pid is not None and holder.port in ports
    }
