"""Placement: a node, GPUs and a port for a new process, or the arithmetic of why there is none."""

from dataclasses import dataclass

from sage_reconcile.model.desired import DesiredEngine, Device
from sage_reconcile.model.observed import ObservedLaunch, ObservedState, Placement
from sage_reconcile.plan.memory import Account, Ledger, need_mib
from sage_reconcile.plan.ports import RANGES, Ports


@dataclass(frozen=True, slots=True)
class Spot:
    """A place that was found. `after` names the steps that must have freed it or started there before."""

    placement: Placement
    need: int
    after: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NoSpot:
    """Why there is no place."""

    reason: str


def wanted_gpus(engine: DesiredEngine, replica: int) -> tuple[int | str, ...] | None:
    """The GPUs that the file pins for this replica: its share of a long list, or all of a short one."""
    pinned = engine.placement.gpus
    if not pinned:
        return None
    count = engine.launch.gpu_count
    return pinned[replica * count : (replica + 1) * count] if len(pinned) > count else pinned


def wanted_port(engine: DesiredEngine, replica: int) -> int | None:
    """The port that the file pins for this replica: replicas count up from it."""
    return None if engine.placement.port is None else engine.placement.port + replica


def violation(engine: DesiredEngine, launch: ObservedLaunch) -> str | None:
    """What the file pins and the launch does not satisfy, in words; None when it is where it may be."""
    place = launch.mark.placement
    port = wanted_port(engine, launch.replica.replica)
    if port is not None and port != place.port:
        return f"port changed: {place.port} -> {port}"
    return None


class Placer:
    """Finds places on one fleet, counting what it has given out."""

    def __init__(self, observed: ObservedState, ledger: Ledger, ports: Ports) -> None:
        self.ledger = ledger
        self.ports = ports
        self._nodes = [node.name for node in observed.nodes]
        self._cpu_load = dict.fromkeys(self._nodes, 0)
        self._blind = {gap.node: gap.reason for gap in observed.gaps if gap.what == "gpus"}
        self._indices = {(gpu.node, gpu.uuid): gpu.index for gpu in observed.gpus}
        for launch in observed.launches:
            if not launch.mark.placement.gpus:
                self._cpu_load[launch.mark.placement.node] = (
                    self._cpu_load.get(launch.mark.placement.node, 0) + 1
                )

    def is_on(self, launch: ObservedLaunch, wanted: tuple[int | str, ...]) -> bool:
        """Whether the launch runs on exactly the GPUs that the file names by index or UUID."""
        place = launch.mark.placement
        named = {*place.gpus, *(self._indices.get((place.node, uuid), -1) for uuid in place.gpus)}
        return len(wanted) == len(place.gpus) and all(gpu in named for gpu in wanted)

    def find(
        self, engine: DesiredEngine, replica: int, *, evict: ObservedLaunch | None = None
    ) -> Spot | NoSpot:
        """A place for a new process of the replica. With `evict`, that launch is ended first, and its place,
        memory and port are the new one's to take; without, it goes on beside it."""
        found = self._gpus(engine, replica, evict)
        if isinstance(found, NoSpot):
            return found
        node, accounts, need, after, notes = found
        port = self._port(engine, replica, node, evict)
        if isinstance(port, NoSpot):
            return port
        uuids = tuple(account.gpu.uuid for account in accounts)
        lane = [account.starts[-1] for account in accounts if account.starts]
        after = tuple(sorted({*after, *lane}))
        return Spot(Placement(node, port, uuids), need, after, notes)

    def claim(self, spot: Spot, step: str, who: str, evict: ObservedLaunch | None = None) -> None:
        """Counts `spot` as given out to `step`."""
        place = spot.placement
        self.ports.take(place.node, place.port, who)
        if evict is not None and evict.mark.placement.node == place.node:
            self.ledger.swap(evict, place.gpus, step, spot.need)
        else:
            self.ledger.take(place.node, place.gpus, step, spot.need)
        if not place.gpus:
            self._cpu_load[place.node] += 1

    def _gpus(
        self, engine: DesiredEngine, replica: int, evict: ObservedLaunch | None
    ) -> "tuple[str, tuple[Account, ...], int, tuple[str, ...], tuple[str, ...]] | NoSpot":
        spec = engine.launch
        if not self._nodes:
            return NoSpot("no node can be seen")
        if spec.device is Device.CPU or (spec.device is Device.PREFER_GPU and not self.ledger.accounts):
            note = ("no GPU on this host: runs on the CPU",) if spec.device is Device.PREFER_GPU else ()
            if self._blind and spec.device is Device.PREFER_GPU:
                return self._no_gpus(engine)
            node = (
                evict.mark.placement.node if evict else min(self._nodes, key=lambda n: (self._cpu_load[n], n))
            )
            return node, (), 0, (), note
        if not self.ledger.accounts:
            return self._no_gpus(engine)
        wanted = wanted_gpus(engine, replica)
        candidates = self._pinned(wanted) if wanted else self._automatic(engine, evict)
        for accounts in candidates:
            gpu = min(accounts, key=lambda a: a.gpu.total_mib).gpu
            need = need_mib(spec, gpu.total_mib)
            after = self._room(accounts, need, evict)
            if after is not None:
                unknown = (
                    ("GPU memory need unknown: set gpu_memory to have it counted",) if need is None else ()
                )
                return gpu.node, accounts, need or 0, after, unknown
        return NoSpot(self._arithmetic(engine, wanted))

    def _room(
        self, accounts: tuple[Account, ...], need: int | None, evict: ObservedLaunch | None
    ) -> tuple[str, ...] | None:
        """() when there is room now, the steps to wait for when there will be, None when there is none."""
        after: set[str] = set()
        for account in accounts:
            own = account.held.get(evict.mark.launch, 0) if evict else 0
            if need is None or account.free + own >= need:
                continue
            if account.free_in_the_end + own < need:
                return None
            after.update(step for step, _ in account.later)
        return tuple(sorted(after))

    def _pinned(self, wanted: tuple[int | str, ...]) -> list[tuple[Account, ...]]:
        found = []
        for node in self._nodes:
            names: dict[int | str, Account] = {}
            for account in self.ledger.by_node.get(node, ()):
                names[account.gpu.index] = names[account.gpu.uuid] = account
            if all(gpu in names for gpu in wanted):
                found.append(tuple(names[gpu] for gpu in wanted))
        return found

    def _automatic(self, engine: DesiredEngine, evict: ObservedLaunch | None) -> list[tuple[Account, ...]]:
        """Candidates, best first: where it ran, the tightest fit of what is free, then of what will be."""
        spec, count = engine.launch, engine.launch.gpu_count
        candidates = []
        if evict and len(evict.mark.placement.gpus) == count:
            place = evict.mark.placement
            own = [self.ledger.account(place.node, uuid) for uuid in place.gpus]
            candidates += [tuple(a for a in own if a)] if all(own) else []
        for node, total in self.ledger.best_nodes(count, spec)[:1]:
            chosen = self.ledger.pick(node, total, count, need_mib(spec, total))
            candidates += [chosen] if chosen else []
        return candidates or self._later(engine, evict)

    def _later(self, engine: DesiredEngine, evict: ObservedLaunch | None) -> list[tuple[Account, ...]]:
        """Groups with room once earlier steps are done; looked for only when nothing is free now."""
        groups = []
        for node in self._nodes:
            accounts = self.ledger.by_node.get(node, [])
            for total in sorted({a.gpu.total_mib for a in accounts}):
                need = need_mib(engine.launch, total) or 0
                fitting = [
                    a
                    for a in accounts
                    if a.gpu.total_mib == total
                    and a.free_in_the_end + (a.held.get(evict.mark.launch, 0) if evict else 0) >= need
                ]
                fitting.sort(key=lambda a: (a.free_in_the_end, a.gpu.index))
                chosen = fitting[: engine.launch.gpu_count]
                if len(chosen) == engine.launch.gpu_count:
                    groups.append(tuple(sorted(chosen, key=lambda a: a.gpu.index)))
        return groups

    def _port(
        self, engine: DesiredEngine, replica: int, node: str, evict: ObservedLaunch | None
    ) -> int | NoSpot:
        fixed = wanted_port(engine, replica)
        own = evict.mark.placement.port if evict and evict.mark.placement.node == node else None
        if fixed is not None:
            holder = None if fixed == own else self.ports.holder(node, fixed)
            return NoSpot(f"port {fixed} on {node} is held by {holder}") if holder else fixed
        if own is not None:
            return own
        port = self.ports.automatic(node, engine.launch.kind)
        if port is None:
            span = RANGES[engine.launch.kind]
            return NoSpot(f"no free port on {node} in {span.start}-{span.stop - 1}")
        return port

    def _no_gpus(self, engine: DesiredEngine) -> NoSpot:
        if self._blind:
            node, reason = min(self._blind.items())
            return NoSpot(f"the GPUs of {node} cannot be seen: {reason}")
        count = engine.launch.gpu_count
        hint = "set use_gpu: false to run it on the CPU"
        return NoSpot(
            f"needs {count} GPU{'s' if count > 1 else ''}, there is none on {self._some_nodes()}; {hint}"
        )

    def _some_nodes(self) -> str:
        names = ", ".join(self._nodes[:3])
        return f"{names} or {len(self._nodes) - 3} others" if len(self._nodes) > 3 else names

    def _arithmetic(self, engine: DesiredEngine, wanted: tuple[int | str, ...] | None) -> str:
        """The need and, GPU by GPU, what is free and who holds the rest."""
        count = engine.launch.gpu_count
        accounts = list(self.ledger.accounts.values())
        if wanted:
            named = [a for a in accounts if a.gpu.index in wanted or a.gpu.uuid in wanted]
            if not named:
                return f"no node has the GPUs {', '.join(map(str, wanted))}"
            accounts = named
        elif all(len(group) < count for group in self.ledger.by_node.values()):
            most = max(len(group) for group in self.ledger.by_node.values())
            return f"needs {count} GPUs on one node (TP x PP), the largest node has {most}"
        accounts.sort(key=lambda a: (-a.free_in_the_end, a.gpu.node, a.gpu.index))
        need = need_mib(engine.launch, accounts[0].gpu.total_mib) or 0
        gpus = [
            f"{a.gpu.node} GPU {a.gpu.index}: {a.free_in_the_end:,} of {a.gpu.total_mib:,} MiB free"
            + (f", {a.foreign:,} used by others" if a.foreign else "")
            for a in accounts[:4]
        ]
        more = [f"{len(accounts) - 4} more with no more free"] if len(accounts) > 4 else []
        return f"needs {need:,} MiB on {count} GPU{'s' if count > 1 else ''}; " + "; ".join([*gpus, *more])
