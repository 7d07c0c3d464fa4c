import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sage_reconcile.model.observed import Gap, GpuHolder, ObservedGpu
from sage_reconcile.observe import gpus
from sage_reconcile.observe.gpus import MIB, read_gpus
from sage_reconcile.observe.holders import FIRST_NAMESPACE, holder_name, parents_of, process_name

UNKNOWN_ERROR = 999
DRIVER_NOT_LOADED = 9


class FakeError(Exception):
    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(f"code {value}")


@dataclass
class Memory:
    total: int
    used: int


@dataclass
class Rates:
    gpu: int


@dataclass
class Running:
    pid: int
    usedGpuMemory: int | None


Answer = Any


@dataclass
class FakeGpu:
    """A device; an exception in place of a value is raised by its call."""

    uuid: Answer
    name: Answer = "NVIDIA H100"
    memory: Answer = field(default_factory=lambda: Memory(81559 * MIB, 100 * MIB))
    rates: Answer = field(default_factory=lambda: Rates(7))
    compute: Answer = ()
    graphics: Answer = ()
    mig: Answer = field(default_factory=lambda: FakeError(gpus.NOT_SUPPORTED))
    slices: tuple[Any, ...] = ()


def said(value: Answer) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


class FakeNvml:
    """NVML in pynvml's shape over described devices; counts its starts and ends."""

    NVMLError = FakeError

    def __init__(self, *devices: Answer, init: Answer = None, shutdown: Answer = None) -> None:
        self.devices, self.init, self.shutdown = devices, init, shutdown
        self.open = 0

    def nvmlInit(self) -> None:
        said(self.init)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1
        said(self.shutdown)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return said(self.devices[index])

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> Any:
        return said(handle.mig)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeGpu) -> int:
        return len(handle.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: FakeGpu, index: int) -> Any:
        return said(device.slices[index])

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> Any:
        return said(handle.uuid)

    def nvmlDeviceGetName(self, handle: FakeGpu) -> Any:
        return said(handle.name)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> Any:
        return said(handle.memory)

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> Any:
        return said(handle.rates)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> Any:
        return said(handle.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: FakeGpu) -> Any:
        return said(handle.graphics)


def read(
    nvml: FakeNvml,
    environ: Mapping[str, str] | None = None,
    driver: Path = Path("/nonexistent"),
    proc: Path = Path("/proc"),
) -> tuple[tuple[ObservedGpu, ...], tuple[Gap, ...]]:
    found = read_gpus("here", environ or {}, nvml, driver, proc)
    assert nvml.open == 0, "nvmlInit and nvmlShutdown are balanced"
    return found


def process(proc: Path, pid: int, name: str, parent: int = 1, opens: str = "") -> None:
    """One process of a described /proc; `opens` is a file that it has open."""
    folder = proc / str(pid)
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_bytes(f"{name}\0".encode())
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0")
    if opens:
        (folder / "fd" / "5").symlink_to(opens)


def proc_of(folder: Path, namespace: str = FIRST_NAMESPACE) -> Path:
    """A described /proc without processes."""
    (folder / "self" / "ns").mkdir(parents=True)
    (folder / "self" / "ns" / "pid").symlink_to(namespace)
    return folder


def test_a_gpu_with_its_holders(tmp_path: Path) -> None:
    pid = 4121
    proc = proc_of(tmp_path)
    process(proc, pid, "python3", parent=77)
    process(proc, 77, "bash")
    gpu = FakeGpu("GPU-a", compute=[Running(pid, 20 * MIB)], graphics=[Running(999_999_999, 3 * MIB)])
    found, gaps = read(FakeNvml(gpu), proc=proc)
    assert gaps == ()
    assert found == (
        ObservedGpu(
            "here",
            0,
            "GPU-a",
            "NVIDIA H100",
            81559,
            100,
            (GpuHolder(pid, "python3", 20), GpuHolder(999_999_999, "", 3)),
            7,
        ),
    )
    assert [holder.parents for holder in found[0].holders] == [(77,), ()]


def test_in_a_container_a_number_counts_only_where_its_process_has_a_gpu_open(tmp_path: Path) -> None:
    """NVML may tell the host's numbers, and some process here may have the same one."""
    proc = proc_of(tmp_path, "pid:[4026532999]")
    process(proc, 10, "stranger", opens="/dev/null")
    process(proc, 11, "VLLM::EngineCor", opens="/dev/nvidia0")
    gpu = FakeGpu("GPU-a", compute=[Running(10, 5 * MIB), Running(11, 7 * MIB), Running(12, 9 * MIB)])
    (found,), _ = read(FakeNvml(gpu), proc=proc)
    assert [(holder.name, holder.mib) for holder in found.holders] == [
        ("", 5),
        ("VLLM::EngineCor", 7),
        ("", 9),
    ]
    assert holder_name(10, proc_of(tmp_path / "other", "pid:[1]")) == ""


def test_the_processes_of_this_machine_have_names_and_parents() -> None:
    assert process_name(os.getpid()) != ""
    assert parents_of(os.getpid())[0] == os.getppid()
    assert parents_of(999_999_999) == ()


def test_the_holders_of_mig_devices_are_their_own(tmp_path: Path) -> None:
    proc = proc_of(tmp_path)
    process(proc, 5, "one")
    slices = (
        FakeGpu(
            "MIG-1", name="H100 MIG 3g.40gb", memory=Memory(40 * MIB, 9 * MIB), compute=[Running(5, 9 * MIB)]
        ),
        FakeGpu("MIG-2", name="H100 MIG 3g.40gb", memory=Memory(40 * MIB, 0), graphics=FakeError(3)),
    )
    found, gaps = read(FakeNvml(FakeGpu("GPU-a", mig=(1, 1), slices=slices)), proc=proc)
    assert gaps == ()
    assert [(gpu.uuid, gpu.total_mib, gpu.used_mib, len(gpu.holders)) for gpu in found] == [
        ("MIG-1", 40, 9, 1),
        ("MIG-2", 40, 0, 0),
    ]


def test_compute_and_graphics_of_one_process_count_once() -> None:
    gpu = FakeGpu("GPU-a", compute=[Running(5, 20 * MIB)], graphics=[Running(5, 20 * MIB)])
    (found,), _ = read(FakeNvml(gpu))
    assert [(holder.pid, holder.mib) for holder in found.holders] == [(5, 20)]


def test_used_memory_is_never_rounded_down_to_nothing() -> None:
    (found,), _ = read(FakeNvml(FakeGpu("GPU-a", memory=Memory(10 * MIB, 1))))
    assert found.used_mib == 1


def test_bytes_absent_utilisation_and_absent_memory_of_a_process() -> None:
    gpu = FakeGpu(
        b"GPU-a",
        name=b"Tesla",
        rates=FakeError(gpus.NOT_SUPPORTED),
        compute=[Running(5, None)],
        graphics=FakeError(gpus.NO_PERMISSION),
    )
    (found,), gaps = read(FakeNvml(gpu))
    assert gaps == ()
    assert (found.uuid, found.name, found.utilization) == ("GPU-a", "Tesla", None)
    assert [(holder.pid, holder.mib) for holder in found.holders] == [(5, 0)]


def test_mig_devices_stand_for_their_gpu_and_leave_the_numbers_of_the_others_alone() -> None:
    sliced = FakeGpu(
        "GPU-a",
        mig=(1, 1),
        slices=(FakeGpu("MIG-1"), FakeError(gpus.NOT_FOUND), FakeGpu("MIG-2", rates=FakeError(3))),
    )
    found, gaps = read(FakeNvml(sliced, FakeGpu("GPU-b", mig=(0, 0))))
    assert gaps == ()
    assert [(gpu.index, gpu.uuid) for gpu in found] == [(1, "GPU-b"), (2, "MIG-1"), (3, "MIG-2")]


@pytest.mark.parametrize(
    "broken",
    [
        FakeError(15),
        FakeGpu("GPU-b", memory=FakeError(15)),
        FakeGpu("GPU-b", mig=FakeError(15)),
        FakeGpu("GPU-b", mig=(1, 1), slices=(FakeError(15),)),
        FakeGpu("GPU-b", mig=(1, 1), slices=(FakeGpu("MIG-1", name=FakeError(15)),)),
    ],
    ids=["handle", "memory", "mig-mode", "mig-handle", "mig-device"],
)
def test_one_failing_gpu_is_a_gap_beside_the_others(broken: Answer) -> None:
    found, gaps = read(FakeNvml(FakeGpu("GPU-a"), broken, FakeGpu("GPU-c")))
    assert [(gpu.index, gpu.uuid) for gpu in found] == [(0, "GPU-a"), (2, "GPU-c")]
    (gap,) = gaps
    assert (gap.node, gap.what) == ("here", "gpus")
    assert "cannot be read: code 15" in gap.reason


def test_holders_that_cannot_be_read_are_a_gap_and_the_gpu_stays() -> None:
    found, gaps = read(FakeNvml(FakeGpu("GPU-a", compute=FakeError(UNKNOWN_ERROR))))
    assert [gpu.uuid for gpu in found] == ["GPU-a"]
    assert "GPU 0 (GPU-a) does not tell who holds its memory" in gaps[0].reason


def test_without_library_and_driver_there_plainly_are_no_gpus() -> None:
    assert read(FakeNvml(init=FakeError(gpus.LIBRARY_NOT_FOUND))) == ((), ())


def test_a_driver_without_its_library_is_a_gap(tmp_path: Path) -> None:
    found, gaps = read(FakeNvml(init=FakeError(gpus.LIBRARY_NOT_FOUND)), driver=tmp_path)
    assert found == ()
    assert "NVML does not start: code 12" in gaps[0].reason


def test_a_library_whose_driver_is_not_loaded_is_a_gap() -> None:
    _, gaps = read(FakeNvml(init=FakeError(DRIVER_NOT_LOADED)))
    assert [gap.what for gap in gaps] == ["gpus"]


def test_a_shutdown_that_fails_loses_nothing() -> None:
    found, gaps = read(FakeNvml(FakeGpu("GPU-a"), shutdown=FakeError(UNKNOWN_ERROR)))
    assert ([gpu.uuid for gpu in found], gaps) == (["GPU-a"], ())


def test_this_machine_itself_can_be_read() -> None:
    """With or without GPUs the true library gives values, and never raises."""
    found, gaps = read_gpus("here", {})
    assert all(gpu.total_mib > 0 for gpu in found)
    assert all(gap.what == "gpus" for gap in gaps)


def test_mock_gpus_are_stable_and_say_so() -> None:
    environ = {"SAGE_GPU_MOCK_COUNT": "2", "SAGE_GPU_MOCK_MEMORY_GB": "24"}
    found, gaps = read(FakeNvml(FakeGpu("GPU-real")), environ)
    assert gaps == ()
    assert [(gpu.uuid, gpu.index, gpu.total_mib, gpu.is_mock) for gpu in found] == [
        ("GPU-mock-0", 0, 24 * 1024, True),
        ("GPU-mock-1", 1, 24 * 1024, True),
    ]
    (default,), _ = read(FakeNvml(), {"SAGE_GPU_MOCK_COUNT": "1"})
    assert default.total_mib == 80 * 1024


@pytest.mark.parametrize(
    "environ",
    [
        {"SAGE_GPU_MOCK_COUNT": "two"},
        {"SAGE_GPU_MOCK_COUNT": "-1"},
        {"SAGE_GPU_MOCK_COUNT": "1", "SAGE_GPU_MOCK_MEMORY_GB": "nan"},
        {"SAGE_GPU_MOCK_COUNT": "1", "SAGE_GPU_MOCK_MEMORY_GB": "0"},
    ],
)
def test_mock_settings_that_make_no_sense_are_a_gap(environ: dict[str, str]) -> None:
    found, gaps = read(FakeNvml(FakeGpu("GPU-real")), environ)
    assert found == ()
    assert "SAGE_GPU_MOCK_COUNT=" in gaps[0].reason


def test_disabled_nvml_is_not_asked() -> None:
    assert read(FakeNvml(FakeGpu("GPU-a"), init=FakeError(1)), {"SAGE_DISABLE_NVML": "1"}) == ((), ())
    found, _ = read(FakeNvml(FakeGpu("GPU-a")), {"SAGE_DISABLE_NVML": "0"})
    assert len(found) == 1
