"""The ledger: what is free on each GPU, what each step takes and gives back. Memory in MiB."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sage_reconcile.model.desired import LaunchSpec
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.modelfiles import ModelFiles
from sage_reconcile.model.observed import ObservedGpu, ObservedLaunch, ObservedState, Orphan
from sage_reconcile.plan.need import Known, counts_by_need, need_of


def need_mib(
    spec: LaunchSpec, gpu_total_mib: int, files: ModelFiles | None = None, fact: Fact | None = None
) -> int | None:
    """MiB that `spec` takes of one GPU of this size: what was measured of it, what the file says, what its
    model's `files` come to; None where nothing is known."""
    return need_of(spec, gpu_total_mib, files, fact)


def held_mib(launch: ObservedLaunch | Orphan, gpu: ObservedGpu, need: int | None = None) -> int:
    """MiB of `gpu` that count as the launch's: its `need` or what was measured, the larger.

    An engine that is still loading has not yet taken what it will take; one that sleeps, or a leftover,
    holds what is measured and no more.
    """
    measured = dict(launch.gpu_mib).get(gpu.uuid, 0)
    if isinstance(launch, Orphan) or launch.health.value == "asleep":
        return measured
    if gpu.uuid not in launch.mark.placement.gpus:
        return measured
    return max(measured, need or 0)


# What an engine that sleeps keeps of each GPU, at most: its CUDA context and what belongs neither to the
# weights nor to the KV cache. vLLM 0.24 was measured at 1,269 to 1,352 MiB on an 80 GB H100.
ASLEEP_MIB = 2048


@dataclass(slots=True)
class Account:
    """One GPU's account. `free` may be used now; `later` becomes free when the named step is done. Nothing
    starts or wakes on a GPU with a `lease`.

    By launch: `held` is what counts as its own now, `needs` what it takes while it is awake, `asleep` what it
    keeps while it sleeps.
    """

    gpu: ObservedGpu
    foreign: int
    held: dict[str, int]
    free: int
    needs: dict[str, int] = field(default_factory=dict)
    asleep: dict[str, int] = field(default_factory=dict)
    later: list[tuple[str, int]] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    flow: list[tuple[str, int, int]] = field(default_factory=list)
    lease: str = ""

    @property
    def free_in_the_end(self) -> int:
        return self.free + sum(mib for _, mib in self.later)


def missing_mib(launch: ObservedLaunch, account: Account) -> int:
    """MiB of the GPU that a launch needs beyond what it holds: what waking up takes."""
    name = launch.mark.launch
    return max(0, account.needs.get(name, 0) - account.held.get(name, 0))


def asleep_mib(launch: ObservedLaunch, account: Account) -> int:
    """MiB of the GPU that a launch keeps while it sleeps."""
    name = launch.mark.launch
    return min(account.held.get(name, 0), account.asleep.get(name, ASLEEP_MIB))


class Ledger:
    """All accounts of a fleet, with an index by free memory so that best fit needs no scan."""

    def __init__(self, observed: ObservedState) -> None:
        self.accounts: dict[tuple[str, str], Account] = {}
        self.by_node: dict[str, list[Account]] = defaultdict(list)
        self.models = {files.model: files for files in observed.models}
        self.known = Known(observed.facts, observed.gpus)
        self._needs: dict[tuple[LaunchSpec, int], int | None] = {}
        owners = _owners(observed)
        for gpu in sorted(observed.gpus, key=lambda g: (g.node, g.index, g.uuid)):
            key = (gpu.node, gpu.uuid)
            account = self._open(gpu, owners.get(key, ()))
            account.lease = str(observed.lease_of((gpu.uuid,)) or "")
            self.accounts[key] = account
            self.by_node[gpu.node].append(account)
        self.sizes = sorted({account.gpu.total_mib for account in self.accounts.values()})
        self._ranks = (
            _Ranks(self.by_node, lambda account: account.free),
            _Ranks(self.by_node, lambda account: account.free_in_the_end),
        )

    def account(self, node: str, uuid: str) -> Account | None:
        return self.accounts.get((node, uuid))

    def need(self, spec: LaunchSpec, gpu_total_mib: int) -> int | None:
        """MiB that `spec` takes of one GPU of this size; None where it is not known."""
        files = self.models.get(spec.model)
        if (files is None or files.shape is None) and not self.known:
            return need_mib(spec, gpu_total_mib)
        key = (spec, gpu_total_mib)
        if (
            key not in self._needs
        ):  # an estimate adds up hundreds of weights, and is asked for again and again
            self._needs[key] = need_mib(spec, gpu_total_mib, files, self.known.of(spec, gpu_total_mib))
        return self._needs[key]

    def _open(self, gpu: ObservedGpu, owners: Sequence[ObservedLaunch | Orphan]) -> Account:
        held, needs, asleep = {}, {}, {}
        for one in owners:
            name, spec = one.mark.launch, one.mark.spec
            need, fact = self.need(spec, gpu.total_mib), self.known.of(spec, gpu.total_mib)
            held[name] = held_mib(one, gpu, need)
            needs[name] = need or 0
            if fact is not None and fact.asleep_mib is not None:
                asleep[name] = fact.asleep_mib
        measured = sum(dict(launch.gpu_mib).get(gpu.uuid, 0) for launch in owners)
        # Where NVML names no process of ours (another PID namespace), what is used is taken to be ours first.
        ours = measured or sum(held.values())
        foreign = max(0, gpu.used_mib - ours)
        free = gpu.total_mib - foreign - sum(held.values())
        return Account(gpu, foreign, held, free, needs, asleep)

    def counted(self, spec: LaunchSpec, gpu_total_mib: int) -> int | None:
        """The need of one that is to be told it, since it fills nothing; else None."""
        fills_nothing = counts_by_need(spec, gpu_total_mib, self.models.get(spec.model))
        return self.need(spec, gpu_total_mib) if fills_nothing else None

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
                self._change(account, later=(step, mib))
                account.flow.append((step, 0, mib))

    def rest(self, launch: ObservedLaunch, step: str) -> None:
        """`step` puts `launch` to sleep; what it does not keep then may be used by steps after `step`."""
        for account in self.by_node.get(launch.mark.placement.node, ()):
            mib = account.held.get(launch.mark.launch, 0) - asleep_mib(launch, account)
            if mib:
                self._change(account, later=(step, mib))
                account.flow.append((step, 0, mib))

    def swap(self, launch: ObservedLaunch, needs: Mapping[str, int], step: str, sleeps: bool = False) -> None:
        """`step` ends `launch` and starts, on GPUs of the same node, something that needs so much of each.

        With `sleeps` the launch ends only once the new one is there, and sleeps until then.
        """
        node = launch.mark.placement.node
        for account in self.by_node.get(node, ()):
            mib = account.held.get(launch.mark.launch, 0)
            kept = asleep_mib(launch, account) if sleeps else 0
            taken = needs.get(account.gpu.uuid, 0)
            if mib:
                account.flow.append((step, 0, mib - kept))
                used_again = min(mib - kept, taken)
                self._change(account, used_again, (step, mib - used_again) if mib > used_again else None)
            if account.gpu.uuid in needs:
                self.take(node, {account.gpu.uuid: taken}, step)
            if kept:
                account.flow.append((step, 0, kept))

    def best_nodes(self, count: int, spec: LaunchSpec, in_the_end: bool = False) -> list[tuple[str, int]]:
        """Nodes where `count` GPUs of one size have room, tightest fit first, as (node, GPU size).

        `in_the_end`: once all steps so far are done. With a need that is not known: the node with the
        emptiest GPUs.
        """
        found: list[tuple[int, str, int]] = []
        for total in self.sizes:
            ranks = self._ranks[in_the_end].of(count, total)
            need = self.need(spec, total)
            if need is None:
                spot = bisect_left(ranks, (ranks[-1][0], "")) if ranks else 0
                found += [(-ranks[spot][0], ranks[spot][1], total)] if ranks else []
            else:
                spot = bisect_left(ranks, (need, ""))
                found += [(free - need, node, total) for free, node in ranks[spot : spot + 1]]
        return [(node, total) for _, node, total in sorted(found)]

    def pick(
        self, node: str, total: int, count: int, need: int | None, in_the_end: bool = False
    ) -> tuple[Account, ...]:
        """The `count` accounts of this size with the tightest fit; the emptiest where `need` is unknown."""
        rooms = [
            (account.free_in_the_end if in_the_end else account.free, account.gpu.index, account)
            for account in self.by_node.get(node, ())
            if account.gpu.total_mib == total and not account.lease
        ]
        if need is None:
            rooms.sort(key=lambda room: (-room[0], room[1]))
        else:
            rooms = [room for room in rooms if room[0] >= need]
            rooms.sort(key=lambda room: room[:2])
        chosen = [account for _, _, account in rooms[:count]]
        return tuple(sorted(chosen, key=lambda a: a.gpu.index)) if len(chosen) == count else ()

    def emptiest(self, count: int) -> list[Account]:
        """The `count` GPUs that have most free in the end, leased ones aside, by node and index where they
        are equal."""
        found: list[Account] = []
        for total in self.sizes:
            ranks, end = self._ranks[True].of(1, total), None
            while ranks and end != 0 and len(found) < count * len(self.sizes):
                spot = bisect_left(ranks, (ranks[:end][-1][0], ""))
                nodes = [node for _, node in ranks[spot:end][:count]]
                found += [a for node in nodes for a in self.by_node[node] if a.gpu.total_mib == total]
                end = spot
        return sorted(found, key=lambda a: (-a.free_in_the_end, a.gpu.node, a.gpu.index))[:count]

    def _change(self, account: Account, mib: int = 0, later: tuple[str, int] | None = None) -> None:
        for ranks in self._ranks:
            ranks.leave(account)
        account.free += mib
        account.later += [later] if later else []
        for ranks in self._ranks:
            ranks.enter(account)


class _Ranks:
    """Nodes by how much the `count`-th emptiest of their GPUs of one size has free, ascending."""

    def __init__(self, by_node: Mapping[str, list[Account]], free: Callable[[Account], int]) -> None:
        self._by_node = by_node
        self._free = free
        self._lists: dict[tuple[int, int], list[tuple[int, str]]] = {}

    def of(self, count: int, total: int) -> list[tuple[int, str]]:
        if (count, total) not in self._lists:
            entries = ((self._kth(node, count, total), node) for node in self._by_node)
            self._lists[count, total] = sorted((free, node) for free, node in entries if free is not None)
        return self._lists[count, total]

    def leave(self, account: Account) -> None:
        """Must be called before the account changes, `enter` after."""
        for ranks, entry in self._entries(account):
            del ranks[bisect_left(ranks, entry)]

    def enter(self, account: Account) -> None:
        for ranks, entry in self._entries(account):
            insort(ranks, entry)

    def _entries(self, account: Account) -> Iterator[tuple[list[tuple[int, str]], tuple[int, str]]]:
        node = account.gpu.node
        for (count, total), ranks in self._lists.items():
            if total == account.gpu.total_mib and (free := self._kth(node, count, total)) is not None:
                yield ranks, (free, node)

    def _kth(self, node: str, count: int, total: int) -> int | None:
        own = (a for a in self._by_node[node] if a.gpu.total_mib == total and not a.lease)
        free = sorted(map(self._free, own), reverse=True)
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
