"""A host described and read again is the same host."""

import json
from pathlib import Path
from typing import Any

import pytest

from sage_reconcile.errors import BlockedError, StackError
from sage_reconcile.model.desired import Kind, LaunchSpec, ReplicaId
from sage_reconcile.model.observed import (
    Gap,
    Health,
    Mark,
    ObservedGpu,
    ObservedLaunch,
    ObservedNode,
    ObservedState,
    Placement,
    PortHolder,
)
from sage_reconcile.observe.describe import inventory_of
from sage_reconcile.observe.gpus import MIB, read_gpus
from sage_reconcile.observe.inventory import described
from tests.observe.test_gpus import FakeError, FakeGpu, FakeNvml, Memory

NOWHERE = Path("/nonexistent")


def read_back(folder: Path, inventory: dict[str, Any]) -> ObservedState:
    path = folder / "host.json"
    path.write_text(json.dumps(inventory), encoding="utf-8")
    return described(path)


def seen(*gpus: ObservedGpu, ports: tuple[PortHolder, ...] = (), **more: Any) -> ObservedState:
    return ObservedState(at=1.0, nodes=(ObservedNode("here", gpus, ports, "boot"),), **more)


def test_what_nvml_tells_comes_back(tmp_path: Path) -> None:
    big = {"name": "NVIDIA H100 80GB HBM3", "memory": Memory(81559 * MIB, 0)}
    part = FakeGpu("MIG-1", "NVIDIA H100 MIG 3g.40gb", Memory(40000 * MIB, 0))
    sliced = FakeGpu("GPU-1", mig=(1, 1), slices=(part, FakeError(6)))
    small = FakeGpu("GPU-3", "NVIDIA L4", Memory(23034 * MIB, 512 * MIB))
    nvml = FakeNvml(FakeGpu("GPU-0", **big), sliced, FakeGpu("GPU-2", **big), small)
    gpus, gaps = read_gpus("here", {}, nvml, NOWHERE)
    state = seen(*gpus, gaps=gaps)
    again = read_back(tmp_path, inventory_of(state))
    kept = [(g.index, g.uuid, g.name, g.total_mib, g.used_mib) for g in again.gpus]
    assert kept == [(g.index, g.uuid, g.name, g.total_mib, g.used_mib) for g in gpus]
    assert [g[:2] for g in kept] == [(0, "GPU-0"), (2, "GPU-2"), (3, "GPU-3"), (4, "MIG-1")]


def test_equal_gpus_are_one_group_and_pretended_ones_are_marked(tmp_path: Path) -> None:
    gpus, _ = read_gpus("here", {"SAGE_GPU_MOCK_COUNT": "3", "SAGE_GPU_MOCK_MEMORY_GB": "24"})
    inventory = inventory_of(seen(*gpus))
    [group] = inventory["nodes"][0]["gpus"]
    assert (group["count"], group["memory_mib"], group["mock"]) == (3, 24 * 1024, True)
    assert read_back(tmp_path, inventory).gpus == gpus


def test_own_engines_do_not_count_and_others_do(tmp_path: Path) -> None:
    gpu = ObservedGpu("here", 0, "GPU-0", "L4", 23034, used_mib=9000)
    spec = LaunchSpec(Kind.LLM, "vllm", "m")
    place = Placement("here", 8901, ("GPU-0",))
    mark = Mark("/home", ReplicaId("s", "chat", 0), "f", "l", spec, place, "m")
    launch = ObservedLaunch(mark, Health.READY, 10, 0.0, pids=(10, 11), gpu_mib=(("GPU-0", 8000),))
    state = seen(gpu, ports=(PortHolder(8901, 11), PortHolder(9000, 77)), launches=(launch,))
    again = read_back(tmp_path, inventory_of(state))
    assert [g.used_mib for g in again.gpus] == [1000]
    assert again.nodes[0].ports == (PortHolder(9000),)
    bare = read_back(tmp_path, inventory_of(state, hardware_only=True))
    assert [g.used_mib for g in bare.gpus] == [0]
    assert bare.nodes[0].ports == ()


def test_a_driver_that_fails_is_never_an_empty_host() -> None:
    gpus, gaps = read_gpus("here", {}, FakeNvml(init=FakeError(999)), NOWHERE)
    with pytest.raises(BlockedError, match=r"nothing was written.*NVML does not start: code 999"):
        inventory_of(seen(*gpus, gaps=gaps), hardware_only=True)


def test_ports_that_cannot_be_seen_hinder_only_where_they_are_told() -> None:
    state = seen(gaps=(Gap("here", "ports", "no /proc"),))
    assert inventory_of(state, hardware_only=True)["nodes"] == [{"name": "here", "gpus": []}]
    with pytest.raises(BlockedError, match="no /proc"):
        inventory_of(state)


def test_an_index_that_goes_down_is_a_fault(tmp_path: Path) -> None:
    groups = [{"name": "a", "memory_mib": 1, "count": 3}, {"name": "b", "memory_mib": 1, "index": 2}]
    with pytest.raises(StackError, match=r"gpus\[1\].index: indices must go up"):
        read_back(tmp_path, {"version": 1, "nodes": [{"name": "a", "gpus": groups}]})
