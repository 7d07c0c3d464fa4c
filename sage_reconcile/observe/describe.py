"""This host as an inventory: the inverse of `observe.inventory`, so that CI plans against what is real."""

from typing import Any

from sage_reconcile.errors import BlockedError
from sage_reconcile.model.observed import ObservedGpu, ObservedLaunch, ObservedNode, ObservedState, Orphan

HARDWARE = frozenset({"gpus", "node"})
USE = HARDWARE | {"ports", "processes"}


def inventory_of(observed: ObservedState, hardware_only: bool = False) -> dict[str, Any]:
    """What `sage plan --inventory` reads, of a look at this host. Sizes in MiB.

    The memory and ports of engines of this SAGE_HOME do not count: a described fleet has nothing running.
    Those of others do, unless `hardware_only`. Raises BlockedError, with the reasons, where something could
    not be seen: a host that looks empty because its driver fails must not be planned against.
    """
    needed = HARDWARE if hardware_only else USE
    gaps = [gap for gap in observed.gaps if gap.what in needed]
    if gaps:
        reasons = "; ".join(dict.fromkeys(f"{gap.node}: {gap.reason}" for gap in gaps))
        raise BlockedError(f"this host cannot be described, nothing was written: {reasons}")
    ours = _held(observed)
    nodes = [_node(node, observed, {} if hardware_only else ours, hardware_only) for node in observed.nodes]
    return {"version": 1, "nodes": nodes}


def _owners(observed: ObservedState) -> tuple[ObservedLaunch | Orphan, ...]:
    return (*observed.launches, *observed.orphans)


def _held(observed: ObservedState) -> dict[str, int]:
    """MiB that engines of this SAGE_HOME hold, by UUID."""
    held: dict[str, int] = {}
    for owner in _owners(observed):
        for uuid, mib in owner.gpu_mib:
            held[uuid] = held.get(uuid, 0) + mib
    return held


def _node(
    node: ObservedNode, observed: ObservedState, ours: dict[str, int], hardware_only: bool
) -> dict[str, Any]:
    groups: list[dict[str, Any]] = []
    following = 0
    for gpu in sorted(node.gpus, key=lambda gpu: gpu.index):
        used = 0 if hardware_only else max(0, gpu.used_mib - ours.get(gpu.uuid, 0))
        group = _group(gpu, used)
        if gpu.index != following:
            group["index"] = gpu.index
        elif groups and _without(groups[-1]) == _without(group):
            groups[-1]["count"] += 1
            groups[-1]["uuids"].append(gpu.uuid)
            following += 1
            continue
        groups.append(group)
        following = gpu.index + 1
    entry: dict[str, Any] = {"name": node.name, "gpus": groups}
    if not hardware_only:
        pids = {pid for owner in _owners(observed) for pid in owner.pids}
        entry["ports"] = sorted({holder.port for holder in node.ports if holder.pid not in pids})
    return entry


def _group(gpu: ObservedGpu, used: int) -> dict[str, Any]:
    group: dict[str, Any] = {"name": gpu.name, "memory_mib": gpu.total_mib, "count": 1, "uuids": [gpu.uuid]}
    if used:
        group["used_mib"] = min(used, gpu.total_mib)
    if gpu.is_mock:
        group["mock"] = True
    return group


def _without(group: dict[str, Any]) -> dict[str, Any]:
    """What must be the same of two GPUs to be one group."""
    return {key: value for key, value in group.items() if key not in ("count", "uuids", "index")}
