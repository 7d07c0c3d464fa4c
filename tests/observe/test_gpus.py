import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sage_reconcile.model.observed import Gap, GpuHolder, ObservedGpu
from sage_reconcile.observe import gpus
from sage_reconcile.observe.gpus import MIB, read_gpus

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
    nvml: FakeNvml, environ: Mapping[str, str] | None = None, driver: Path = Path("/nonexistent")
) -> tuple[tuple[ObservedGpu, ...], tuple[Gap, ...]]:
    found = read_gpus("here", environ or {}, nvml, driver)
    assert nvml.open == 0, "nvmlInit and nvmlShutdown are balanced"
    return found


def test_a_gpu_with_its_holders() -> None:
    pid = os.getpid()
    gpu = FakeGpu("GPU-a", compute=[Running(pid, 20 * MIB)], graphics=[Running(999_999_999, 3 * MIB)])
    found, gaps = read(FakeNvml(gpu))
    assert gaps == ()
    assert found == (
        ObservedGpu(
            "here",
            0,
            "GPU-a",
            "NVIDIA H100",
            81559,
            100,
            (GpuHolder(pid, gpus.process_name(pid), 20), GpuHolder(999_999_999, "", 3)),
            7,
        ),
    )
    assert found[0].holders[0].name != ""


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
