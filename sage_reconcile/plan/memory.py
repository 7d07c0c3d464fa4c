"""The ledger: what is free on each GPU, what each step takes and gives back. Memory in MiB."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from sage_reconcile.engines.registry import runtime
from sage_reconcile.model.actions import GpuTimeline
from sage_reconcile.model.desired import LaunchSpec
from sage_reconcile.model.observed import ObservedGpu, ObservedLaunch, ObservedState, Orphan


def need_mib(spec: LaunchSpec, gpu_total_mib: int) -> int | None:
    """MiB that `spec` takes of one GPU of this size; None where it is not known."""
    return None if spec.is_external else runtime(spec.runtime).need_mib(spec, gpu_total_mib)


def held_mib(launch: ObservedLaunch | Orphan, gpu: ObservedGpu) -> int:
    """MiB of `gpu` that count as the launch's: what it declared or what was measured, the larger.

    An engine that is still loading has not yet taken what it will take; one that sleeps, or a leftover,
    holds what is measured and no more.
    """
    measured = dict(launch.gpu_mib).get(gpu.uuid, 0)
    if isinstance(launch, Orphan) or launch.health.value == "asleep":
        return measured
    if gpu.uuid not in launch.mark.placement.gpus:
        return measured
    return max(measured, need_mib(launch.mark.spec, gpu.total_mib) or 0)


@dataclass(slots=True)
class Account:
    """One GPU's account. `free` may be used now; `later` becomes free when the named step is done."""

    gpu: ObservedGpu
    foreign: int
    held: dict[str, int]
    free: int
    later: list[tuple[str, int]] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    flow: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def free_in_the_end(self) -> int:
        return self.free + sum(mib for _, mib in self.later)


class Ledger:
    """All accounts of a fleet, with an index by free memory so that best fit needs no scan."""

    def __init__(self, observed: ObservedState) -> None:
        self.accounts: dict[tuple[str, str], Account] = {}
        self.by_node: dict[str, list[Account]] = defaultdict(list)
        owners = _owners(observed)
        for gpu in sorted(observed.gpus, key=lambda g: (g.node, g.index, g.uuid)):
            key = (gpu.node, gpu.uuid)
            account = _open_account(gpu, owners.get(key, ()))
            self.accounts[key] = account
            self.by_node[gpu.node].append(account)
        self._ranks: dict[tuple[int, int], list[tuple[int, str]]] = {}

    def account(self, node: str, uuid: str) -> Account | None:
        return self.accounts.get((node, uuid))

    def take(self, node: str, needs: Mapping[str, int], step: str) -> None:
        """`step` starts something that needs so much of each of the GPUs."""
        for uuid, need in needs.items():
            account = self.accounts[node, uuid]
            self._change(account, -need)
            account.starts.append(step)
            account.flow.append((step, need, 0))

    def give_back(self, launch: ObservedLaunch | Orphan, step: str) -> None:
        """`step` ends `launch`; what it held may be used by steps that come after `step`."""
        node = launch.mark.placement.node
        for account in self.by_node.get(node, ()):
            mib = account.held.get(launch.mark.launch, 0)
            if mib:
                account.later.append((step, mib))
                account.flow.append((step, 0, mib))

    def swap(self, launch: ObservedLaunch, needs: Mapping[str, int], step: str) -> None:
        """`step` ends `launch` and starts, on GPUs of the same node, something that needs so much of each."""
        node = launch.mark.placement.node
        for account in self.by_node.get(node, ()):
            mib = account.held.get(launch.mark.launch, 0)
            taken = needs.get(account.gpu.uuid, 0)
            if mib:
                account.flow.append((step, 0, mib))
                used_again = min(mib, taken)
                account.later += [(step, mib - used_again)] if mib > used_again else []
                self._change(account, used_again)
            if account.gpu.uuid in needs:
                self.take(node, {account.gpu.uuid: taken}, step)

    def best_nodes(self, count: int, spec: LaunchSpec) -> list[tuple[str, int]]:
        """Nodes where `count` GPUs of one size have room, tightest fit first, as (node, GPU size).

        With a need that is not known: the node with the emptiest GPUs.
        """
        found: list[tuple[int, str, int]] = []
        for total in sorted({account.gpu.total_mib for account in self.accounts.values()}):
            ranks = self._rank(count, total)
            need = need_mib(spec, total)
            if need is None:
                spot = bisect_left(ranks, (ranks[-1][0], "")) if ranks else 0
                found += [(-ranks[spot][0], ranks[spot][1], total)] if ranks else []
            else:
                spot = bisect_left(ranks, (need, ""))
                found += [(free - need, node, total) for free, node in ranks[spot : spot + 1]]
        return [(node, total) for _, node, total in sorted(found)]

    def pick(self, node: str, total: int, count: int, need: int | None) -> tuple[Account, ...]:
        """The `count` accounts of this size with the tightest fit; the emptiest where `need` is unknown."""
        accounts = [a for a in self.by_node.get(node, ()) if a.gpu.total_mib == total]
        if need is None:
            accounts.sort(key=lambda a: (-a.free, a.gpu.index))
        else:
            accounts = [a for a in accounts if a.free >= need]
            accounts.sort(key=lambda a: (a.free, a.gpu.index))
        chosen = accounts[:count]
        return tuple(sorted(chosen, key=lambda a: a.gpu.index)) if len(chosen) == count else ()

    def timeline(self, before: Mapping[str, tuple[str, ...]]) -> tuple[GpuTimeline, ...]:
        """Each GPU as it is, at its worst moment and at the end; `before` has what each step waits for.

        What a step gives back is counted on for those that wait for it: others may run earlier.
        """
        waits = _Waits(before)
        return tuple(_line(account, waits) for account in self.accounts.values())

    def _change(self, account: Account, mib: int) -> None:
        node, total = account.gpu.node, account.gpu.total_mib
        keys = [key for key in self._ranks if key[1] == total]
        for key in keys:
            if (entry := self._kth_free(node, *key)) is not None:
                ranks = self._ranks[key]
                del ranks[bisect_left(ranks, (entry, node))]
        account.free += mib
        for key in keys:
            if (entry := self._kth_free(node, *key)) is not None:
                insort(self._ranks[key], (entry, node))

    def _rank(self, count: int, total: int) -> list[tuple[int, str]]:
        """Nodes by the free memory of their `count`-th emptiest GPU of this size, ascending."""
        if (count, total) not in self._ranks:
            entries = ((self._kth_free(node, count, total), node) for node in self.by_node)
            self._ranks[count, total] = sorted((free, node) for free, node in entries if free is not None)
        return self._ranks[count, total]

    def _kth_free(self, node: str, count: int, total: int) -> int | None:
        free = sorted((a.free for a in self.by_node[node] if a.gpu.total_mib == total), reverse=True)
        return free[count - 1] if count <= len(free) else None


def _owners(observed: ObservedState) -> dict[tuple[str, str], list[ObservedLaunch | Orphan]]:
    """Our launches and leftovers by the GPUs that they hold or were given."""
    owners: dict[tuple[str, str], list[ObservedLaunch | Orphan]] = defaultdict(list)
    everything: tuple[ObservedLaunch | Orphan, ...] = (*observed.launches, *observed.orphans)
    for launch in everything:
        place = launch.mark.placement
        for uuid in sorted({*place.gpus, *dict(launch.gpu_mib)}):
            owners[place.node, uuid].append(launch)
    return owners


def _open_account(gpu: ObservedGpu, owners: tuple[()] | list[ObservedLaunch | Orphan]) -> Account:
    held = {launch.mark.launch: held_mib(launch, gpu) for launch in owners}
    measured = sum(dict(launch.gpu_mib).get(gpu.uuid, 0) for launch in owners)
    # Where NVML names no process of ours (another PID namespace), what is used is taken to be ours first.
    ours = measured or sum(held.values())
    foreign = max(0, gpu.used_mib - ours)
    return Account(gpu, foreign, held, gpu.total_mib - foreign - sum(held.values()))


class _Waits:
    """Which steps are over when a step begins."""

    def __init__(self, before: Mapping[str, tuple[str, ...]]) -> None:
        self._before = before
        self._known: dict[str, frozenset[str]] = {}

    def of(self, step: str) -> frozenset[str]:
        """Everything that `step` waits for, directly or not."""
        if step not in self._known:
            direct = self._before.get(step, ())
            self._known[step] = frozenset(direct).union(*(self.of(other) for other in direct))
        return self._known[step]


def _line(account: Account, waits: _Waits) -> GpuTimeline:
    gpu, flow = account.gpu, account.flow
    before = peak = account.foreign + sum(account.held.values())
    gives = [(number, step, given) for number, (step, _, given) in enumerate(flow) if given]
    taken_so_far = 0
    for number, (step, taken, _) in enumerate(flow):
        if taken:
            taken_so_far += taken
            over = waits.of(step) if gives else frozenset()
            given = sum(mib for n, other, mib in gives if other in over or (other == step and n < number))
            peak = max(peak, before + taken_so_far - given)
    after = before + taken_so_far - sum(mib for _, _, mib in gives)
    return GpuTimeline(gpu.node, gpu.index, gpu.uuid, gpu.name, gpu.total_mib, before, peak, after)
