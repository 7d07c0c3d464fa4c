import json
from pathlib import Path

import pytest

from sage_reconcile.errors import StackError
from sage_reconcile.model.observed import ObservedGpu, ObservedNode, ObservedState, PortHolder
from sage_reconcile.observe.inventory import described


def write(folder: Path, text: str) -> Path:
    path = folder / "host.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(StackError) as caught:
        described(path)
    return [str(fault).replace(str(path), "F") for fault in caught.value.faults]


PUBLISHED = """\
version: 1
nodes:
  - name: gpu-a
    gpus: [{name: "NVIDIA H100 80GB HBM3", memory_mib: 81559, count: 8}]
"""


def test_the_published_example(tmp_path: Path) -> None:
    state = described(write(tmp_path, PUBLISHED))
    gpus = tuple(
        ObservedGpu("gpu-a", index, f"gpu-a/{index}", "NVIDIA H100 80GB HBM3", 81559) for index in range(8)
    )
    assert state == ObservedState(at=0.0, nodes=(ObservedNode("gpu-a", gpus),), is_described=True)


def test_all_that_can_be_said(tmp_path: Path) -> None:
    state = described(
        write(
            tmp_path,
            """\
            version: 1
            nodes:
              - name: a
                ports: [9001, 8901, 8901]
                gpus:
                  - {name: H100, memory_mib: 1000, uuid: GPU-x, used_mib: 10}
                  - {name: L4, memory_mib: 500, count: 2, uuids: [GPU-y, GPU-z]}
                  - {name: L4, memory_mib: 500}
              - name: cpu-a
            """,
        )
    )
    first, second = state.nodes
    assert first.ports == (PortHolder(8901), PortHolder(9001))
    assert [(gpu.index, gpu.uuid, gpu.total_mib, gpu.used_mib) for gpu in first.gpus] == [
        (0, "GPU-x", 1000, 10),
        (1, "GPU-y", 500, 0),
        (2, "GPU-z", 500, 0),
        (3, "a/3", 500, 0),
    ]
    assert second == ObservedNode("cpu-a")


def test_json_says_the_same(tmp_path: Path) -> None:
    plain = {"version": 1, "nodes": [{"name": "a", "gpus": [{"name": "L4", "memory_mib": 5, "count": 2}]}]}
    as_json = described(write(tmp_path, json.dumps(plain, indent=2)))
    as_yaml = described(
        write(tmp_path, "version: 1\nnodes: [{name: a, gpus: [{name: L4, memory_mib: 5, count: 2}]}]")
    )
    assert as_json == as_yaml


def test_every_fault_with_its_place(tmp_path: Path) -> None:
    text = """\
version: 2
nodes:
  - name: a
    gpu: []
    gpus:
      - name: H100
        memory_mib: 80GiB
        colour: green
      - {memory_mib: 0}
  - gpus: []
    ports: [80, 70000]
extra: 1
"""
    assert faults(tmp_path, text) == [
        "F:1:1: error: version: input should be 1",
        "F:4:5: error: nodes[0].gpu: unknown key (known here: name, gpus, ports)",
        "F:7:9: error: nodes[0].gpus[0].memory_mib: input should be a valid integer",
        "F:8:9: error: nodes[0].gpus[0].colour: unknown key"
        " (known here: name, memory_mib, count, uuid, uuids, used_mib, index, mock)",
        "F:9:9: error: nodes[0].gpus[1].name: is needed here",
        "F:9:10: error: nodes[0].gpus[1].memory_mib: input should be greater than 0",
        "F:10:5: error: nodes[1].name: is needed here",
        "F:11:17: error: nodes[1].ports[1]: input should be less than or equal to 65535",
        "F:12:1: error: extra: unknown key (known here: version, nodes)",
    ]


@pytest.mark.parametrize(
    ("gpus", "fault"),
    [
        (
            "{name: L4, memory_mib: 5, count: 2, uuid: x}",
            "F:4:36: error: nodes[0].gpus[0].count: count is 2, UUIDs are 1",
        ),
        ("{name: L4, memory_mib: 5, uuid: x, uuids: [x]}", "both uuid and uuids"),
        ("{name: L4, memory_mib: 5, used_mib: 6}", "used_mib: more than the GPU has (5 MiB)"),
        ("{name: L4, memory_mib: 5, count: 2, uuids: [x, x]}", "UUID 'x' is given twice"),
    ],
)
def test_contradictions(tmp_path: Path, gpus: str, fault: str) -> None:
    found = faults(tmp_path, f"version: 1\nnodes:\n- name: a\n  gpus: [{gpus}]\n")
    assert len(found) == 1
    assert fault in found[0]


def test_a_node_described_twice(tmp_path: Path) -> None:
    assert faults(tmp_path, "version: 1\nnodes:\n- name: a\n- name: a\n") == [
        "F:4:3: error: nodes[1].name: node 'a' is described twice (give each node its own name)"
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "F:1:1: error: input should be"),
        ("[]", "F:1:1: error: input should be"),
        ("version: 1", "F:1:1: error: nodes: is needed here"),
        ("version: 1\nnodes: []", "F:2:1: error: nodes: list should have at least 1 item"),
        ("version: 1\nnodes: [", "F:2:9: error: not readable as YAML"),
        (
            "version: 1\nversion: 1\nnodes: [{name: a}]",
            "F:2:1: error: not readable as YAML: found duplicate key",
        ),
        (
            '{"version": 1,\n "version": 1, "nodes": []}',
            "F:2:2: error: not readable as YAML: found duplicate key",
        ),
        ("version: 1\nnodes: !!python/object:os.system [x]", "F:2:8: error: not readable as YAML"),
        ("[" * 5000, "F: error: not readable as YAML: it is nested too deeply"),
        ("version: 2024-13-45", "F: error: not readable as YAML: "),
        ("a\0b", "F: error: not readable as YAML"),
        ("1: {", "F:1:5: error: not readable as YAML"),
    ],
)
def test_files_that_are_no_inventory(tmp_path: Path, text: str, fault: str) -> None:
    found = faults(tmp_path, text)
    assert found[0].startswith(fault)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"host\.yaml: error: the inventory cannot be read: No such file"):
        described(tmp_path / "host.yaml")
    with pytest.raises(StackError, match=r"No such file or directory \(the folder .*/gone does not exist\)"):
        described(tmp_path / "gone" / "host.yaml")
    (tmp_path / "host.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(StackError, match=r"it is not UTF-8 text$"):
        described(tmp_path / "host.yaml")
    with pytest.raises(StackError, match=r"No such file or directory \(did you mean host\.yaml\?\)"):
        described(tmp_path / "hots.yaml")


def test_five_hundred_hosts(tmp_path: Path) -> None:
    nodes = "".join(
        f"  - name: gpu-{n}\n    gpus: [{{name: H100, memory_mib: 81559, count: 8}}]\n" for n in range(500)
    )
    state = described(write(tmp_path, f"version: 1\nnodes:\n{nodes}"))
    assert len(state.gpus) == 4000
    assert len({gpu.uuid for gpu in state.gpus}) == 4000
