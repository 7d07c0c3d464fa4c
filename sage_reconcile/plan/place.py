"""Placement: a node, GPUs and a port for a new process, or the arithmetic of why there is none."""

from collections.abc import Iterator
from dataclasses import dataclass

from sage_reconcile.model.desired import DesiredEngine, Device, LaunchSpec
from sage_reconcile.model.observed import ObservedLaunch, ObservedState, Placement
from sage_reconcile.plan.explain import no_room_to_wake, shortage
from sage_reconcile.plan.fit import fit
from sage_reconcile.plan.memory import Account, Ledger, asleep_mib, missing_mib
from sage_reconcile.plan.ports import RANGES, Ports


@dataclass(frozen=True, slots=True)
class Spot:
    """A place that was found. `needs` are MiB by GPU; `after` names the steps that must have freed it,
    `behind` those that start there before. `counted_mib` is for the Launch."""

    placement: Placement
    needs: dict[str, int]
    after: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    counted_mib: int | None = None


@dataclass(frozen=True, slots=True)
class NoSpot:
    """Why there is no place; `lacks_memory`: there would be one if GPUs had more free."""

    reason: str
    lacks_memory: bool = False


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


def _lane(accounts: tuple[Account, ...], after: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The steps that start or end something on these GPUs before: an engine that measures a GPU while
    another comes or goes there takes a wrong share of it."""
    ending = {step for account in accounts for step, _ in account.later}
    return tuple(
        sorted(({account.starts[-1] for account in accounts if account.starts} | ending) - set(after))
    )


class Placer:
    """Finds places on one fleet, counting what it has given out."""

    def __init__(self, observed: ObservedState, ledger: Ledger, ports: Ports) -> None:
        self.ledger = ledger
        self.ports = ports
        self._nodes = sorted(node.name for node in observed.nodes)
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
        if place.node in self._blind:
            return True  # which index a UUID has cannot be seen now: not seen is not changed
        named = {*place.gpus, *(self._indices.get((place.node, uuid), -1) for uuid in place.gpus)}
        return len(wanted) == len(place.gpus) and all(gpu in named for gpu in wanted)

    def find(
        self,
        engine: DesiredEngine,
        replica: int,
        *,
        evict: ObservedLaunch | None = None,
        sleeps: bool = False,
    ) -> Spot | NoSpot:
        """A place for a new process of the replica. With `evict`, that launch is ended first, and its place,
        memory and port are the new one's to take; without, it goes on beside it. With `sleeps` it keeps its
        port, and of its memory what an engine that sleeps keeps."""
        found = self._gpus(engine, replica, evict, sleeps)
        if isinstance(found, NoSpot):
            return found
        node, accounts, needs, freed, notes = found
        port = self._port(engine, replica, node, None if sleeps else evict)
        if isinstance(port, NoSpot):
            return port
        number, leaves = port
        uuids = tuple(account.gpu.uuid for account in accounts)
        after = tuple(sorted({*freed, *leaves}))
        counted = self.ledger.counted(engine.launch, min((a.gpu.total_mib for a in accounts), default=0))
        return Spot(Placement(node, number, uuids), needs, after, _lane(accounts, after), notes, counted)

    def claim(
        self, spot: Spot, step: str, who: str, evict: ObservedLaunch | None = None, sleeps: bool = False
    ) -> None:
        """Counts `spot` as given out to `step`."""
        place = spot.placement
        if evict is not None:
            self.ports.give_back(evict, step)
        self.ports.take(place.node, place.port, who)
        if evict is not None and evict.mark.placement.node == place.node:
            self.ledger.swap(evict, spot.needs, step, sleeps)
        else:
            self.ledger.take(place.node, spot.needs, step)
            if evict is not None:
                self.ledger.give_back(evict, step)
        if not place.gpus:
            self._cpu_load[place.node] += 1

    def _gpus(
        self, engine: DesiredEngine, replica: int, evict: ObservedLaunch | None, sleeps: bool
    ) -> "tuple[str, tuple[Account, ...], dict[str, int], tuple[str, ...], tuple[str, ...]] | NoSpot":
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
            return node, (), {}, (), note
        if not self.ledger.accounts:
            return self._no_gpus(engine)
        wanted = wanted_gpus(engine, replica)
        candidates = self._pinned(wanted, evict) if wanted else self._automatic(engine, evict)
        best: tuple[tuple[Account, ...], tuple[str, ...]] | None = None
        for accounts in candidates:
            after = self._room(accounts, spec, evict, sleeps)
            if after is not None and (best is None or not after):
                best = accounts, after
            if after == ():
                break
        if best is None:
            return NoSpot(shortage(engine.launch, wanted, self.ledger), lacks_memory=True)
        accounts, after = best
        needs = {a.gpu.uuid: self.ledger.need(spec, a.gpu.total_mib) for a in accounts}
        smallest = min(a.gpu.total_mib for a in accounts)
        fits = fit(spec, self.ledger.models.get(spec.model), smallest, self.ledger.known.of(spec, smallest))
        if fits.is_impossible:
            return NoSpot(fits.note)
        note = (fits.note,) if fits.note else ()
        return accounts[0].gpu.node, accounts, {uuid: mib or 0 for uuid, mib in needs.items()}, after, note

    def wake(self, launch: ObservedLaunch, step: str) -> Spot | NoSpot:
        """Counts what the launch takes when it wakes where it sleeps; a NoSpot where it does not fit."""
        place = launch.mark.placement
        if place.gpus and place.node in self._blind:
            return NoSpot(f"the GPUs of {place.node} cannot be seen: {self._blind[place.node]}")
        found = (self.ledger.account(place.node, uuid) for uuid in place.gpus)
        accounts = tuple(account for account in found if account is not None)
        after = self._room(accounts, launch.mark.spec, launch)
        if after is None:
            return NoSpot(no_room_to_wake(launch, accounts), lacks_memory=True)
        needs = {a.gpu.uuid: missing_mib(launch, a) for a in accounts}
        spot = Spot(place, needs, after, _lane(accounts, after))
        self.ledger.take(place.node, needs, step)
        return spot

    def queue(self, launch: ObservedLaunch, step: str) -> tuple[str, ...]:
        """`step` waits for a launch that is starting: others start on its GPUs when it has ended."""
        place = launch.mark.placement
        found = (self.ledger.account(place.node, uuid) for uuid in place.gpus)
        accounts = tuple(account for account in found if account is not None)
        behind = _lane(accounts)
        for account in accounts:
            account.starts.append(step)
        return behind

    def _room(
        self,
        accounts: tuple[Account, ...],
        spec: LaunchSpec,
        evict: ObservedLaunch | None,
        sleeps: bool = False,
    ) -> tuple[str, ...] | None:
        """() when there is room now, the steps to wait for when there will be, None when there is none."""
        after: set[str] = set()
        if any(account.lease for account in accounts):
            return None
        for account in accounts:
            need = self.ledger.need(spec, account.gpu.total_mib)
            own = account.held.get(evict.mark.launch, 0) if evict else 0
            own -= asleep_mib(evict, account) if evict and sleeps else 0
            if need is None or account.free + own >= need:
                continue
            if account.free_in_the_end + own < need:
                return None
            after.update(step for step, _ in account.later)
        return tuple(sorted(after))

    def _pinned(
        self, wanted: tuple[int | str, ...], evict: ObservedLaunch | None
    ) -> list[tuple[Account, ...]]:
        """The GPUs of these names on every node that has them, the node where it runs first."""
        home = evict.mark.placement.node if evict else None
        found = []
        for node in sorted(self._nodes, key=lambda name: name != home):
            names: dict[int | str, Account] = {}
            for account in self.ledger.by_node.get(node, ()):
                names[account.gpu.index] = names[account.gpu.uuid] = account
            if all(gpu in names for gpu in wanted):
                found.append(tuple(names[gpu] for gpu in wanted))
        return found

    def _automatic(
        self, engine: DesiredEngine, evict: ObservedLaunch | None
    ) -> Iterator[tuple[Account, ...]]:
        """Candidates, best first: where it ran, the tightest fit of what is free, then of what will be."""
        spec, count = engine.launch, engine.launch.gpu_count
        if evict and len(evict.mark.placement.gpus) == count:
            place = evict.mark.placement
            own = tuple(a for uuid in place.gpus if (a := self.ledger.account(place.node, uuid)))
            if len(own) == count:
                yield own
        for node, total in self.ledger.best_nodes(count, spec)[:1]:
            if chosen := self.ledger.pick(node, total, count, self.ledger.need(spec, total)):
                yield chosen
        yield from self._later(engine, evict)

    def _later(self, engine: DesiredEngine, evict: ObservedLaunch | None) -> Iterator[tuple[Account, ...]]:
        """Groups with room once earlier steps are done: on its own node, then the tightest fit anywhere."""
        spec, count = engine.launch, engine.launch.gpu_count
        if evict:
            home = self.ledger.by_node.get(evict.mark.placement.node, [])
            for total in self.ledger.sizes:
                equal = sorted(
                    (a for a in home if a.gpu.total_mib == total),
                    key=lambda a: (a.free_in_the_end, a.gpu.index),
                )
                fitting = [a for a in equal if self._room((a,), spec, evict) is not None][:count]
                if len(fitting) == count:
                    yield tuple(sorted(fitting, key=lambda a: a.gpu.index))
        for node, total in self.ledger.best_nodes(count, spec, in_the_end=True)[:1]:
            if chosen := self.ledger.pick(node, total, count, self.ledger.need(spec, total), in_the_end=True):
                yield chosen

    def _port(
        self, engine: DesiredEngine, replica: int, node: str, evict: ObservedLaunch | None
    ) -> tuple[int, tuple[str, ...]] | NoSpot:
        """A port, and the step that must have freed it before."""
        fixed = wanted_port(engine, replica)
        own = evict.mark.placement.port if evict and evict.mark.placement.node == node else None
        if fixed is not None:
            holder = None if fixed == own else self.ports.holder(node, fixed)
            if holder is None:
                return fixed, ()
            step = self.ports.freed_by(node, fixed)
            return (fixed, (step,)) if step else NoSpot(f"port {fixed} on {node} is held by {holder}")
        if own is not None:
            return own, ()
        port = self.ports.automatic(node, engine.launch.kind)
        if port is None:
            span = RANGES[engine.launch.kind]
            return NoSpot(f"no free port on {node} in {span.start}-{span.stop - 1}")
        return port, ()

    def _no_gpus(self, engine: DesiredEngine) -> NoSpot:
        if self._blind:
            node, reason = min(self._blind.items())
            return NoSpot(f"the GPUs of {node} cannot be seen: {reason}")
        count = engine.launch.gpu_count
        # An engine that is spread over several GPUs is too large for a CPU.
        hint = "; set use_gpu: false to run it on the CPU" if count == 1 else ""
        return NoSpot(
            f"needs {count} GPU{'s' if count > 1 else ''}, there is none on {self._some_nodes()}{hint}"
        )

    def _some_nodes(self) -> str:
        names = ", ".join(self._nodes[:3])
        return f"{names} or {len(self._nodes) - 3} others" if len(self._nodes) > 3 else names
