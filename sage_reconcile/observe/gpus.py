"""GPUs and who holds their memory, by NVML. The only importer of pynvml.

NVML calls can take long, with a sick driver for ever: `read_gpus` is for a thread with a deadline.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import pynvml

from sage_reconcile.model.observed import Gap, GpuHolder, ObservedGpu
from sage_reconcile.observe.holders import PROC, holder_name, parents_of

MIB = 1024 * 1024
DEFAULT_MOCK_GB = 80.0

# Error codes of nvml.h that are an answer rather than a fault.
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
LIBRARY_NOT_FOUND = 12
VERSIONS_DIFFER = 18
NOT_SAID = frozenset({NOT_SUPPORTED, NO_PERMISSION})

T = TypeVar("T")


class Nvml(Protocol):
    """What is used of NVML, in pynvml's shape; every call may raise `NVMLError` with `.value`."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> object: ...
    def nvmlShutdown(self) -> object: ...
    def nvmlSystemGetDriverVersion(self) -> str | bytes: ...
    def nvmlSystemGetCudaDriverVersion_v2(self) -> int: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetMigMode(self, handle: Any) -> Any: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any: ...
    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> Any: ...


DRIVER = Path("/proc/driver/nvidia")


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver as NVML tells of it: its version and the CUDA version that it supports, or why not.

    `code` is NVML's error, 0 for none; `is_loaded` whether the kernel has the module.
    """

    version: str = ""
    cuda: tuple[int, int] | None = None
    is_loaded: bool = False
    code: int = 0
    fault: str = ""


Found = tuple[tuple[ObservedGpu, ...], tuple[Gap, ...]]


def read_gpus(
    node: str,
    environ: Mapping[str, str],
    nvml: Nvml | None = None,
    driver: Path = DRIVER,
    proc: Path = PROC,
) -> Found:
    """The GPUs of this host, and what could not be seen of them.

    A host without NVML and without a driver plainly has no GPUs: that is a fact and no gap. A driver that
    does not answer is a gap; so is a single GPU that fails, beside the others. `SAGE_GPU_MOCK_COUNT` (with
    `SAGE_GPU_MOCK_MEMORY_GB`, default 80) gives pretended GPUs instead; `SAGE_DISABLE_NVML=1` leaves NVML
    alone.
    """
    try:
        mocks = _mock_gpus(node, environ)
    except ValueError as error:
        return (), (Gap(node, "gpus", str(error)),)
    if mocks or environ.get("SAGE_DISABLE_NVML", "").lower() in {"1", "true", "yes"}:
        return mocks, ()
    api = nvml if nvml is not None else cast(Nvml, pynvml)
    try:
        api.nvmlInit()
    except api.NVMLError as error:
        if _code(error) == LIBRARY_NOT_FOUND and not driver.exists():
            return (), ()
        reason = f"NVML does not start: {_text(error)}; see `nvidia-smi` and the kernel's log"
        return (), (Gap(node, "gpus", reason),)
    try:
        return _Reader(api, node, proc).read()
    finally:
        try:
            api.nvmlShutdown()
        except api.NVMLError:
            pass  # what was read stays true, and there is nothing left to release


def read_driver(nvml: Nvml | None = None, driver: Path = DRIVER) -> Driver:
    """The driver's version, also where GPUs are pretended. May hang with a sick driver, as `read_gpus`."""
    api = nvml if nvml is not None else cast(Nvml, pynvml)
    is_loaded = driver.exists()
    try:
        api.nvmlInit()
    except api.NVMLError as error:
        return Driver(is_loaded=is_loaded, code=_code(error), fault=_text(error))
    try:
        cuda = api.nvmlSystemGetCudaDriverVersion_v2()
        version = _as_str(api.nvmlSystemGetDriverVersion())
        return Driver(version, (cuda // 1000, cuda % 1000 // 10), is_loaded)
    except api.NVMLError as error:
        return Driver(is_loaded=is_loaded, code=_code(error), fault=_text(error))
    finally:
        try:
            api.nvmlShutdown()
        except api.NVMLError:
            pass  # what was read stays true


def _mock_gpus(node: str, environ: Mapping[str, str]) -> tuple[ObservedGpu, ...]:
    raw_count = environ.get("SAGE_GPU_MOCK_COUNT", "").strip()
    raw_memory = environ.get("SAGE_GPU_MOCK_MEMORY_GB", "").strip()
    if not raw_count:
        return ()
    try:
        count = int(raw_count)
        memory_gb = float(raw_memory) if raw_memory else DEFAULT_MOCK_GB
    except ValueError:
        count, memory_gb = -1, 0.0
    if count < 0 or not 0 < memory_gb < 1e6:
        raise ValueError(
            f"SAGE_GPU_MOCK_COUNT={raw_count!r} SAGE_GPU_MOCK_MEMORY_GB={raw_memory!r}: "
            "a whole number of GPUs and a size in GB are needed"
        )
    return tuple(
        ObservedGpu(node, index, f"GPU-mock-{index}", "Mock GPU", int(memory_gb * 1024), is_mock=True)
        for index in range(count)
    )


class _Reader:
    """One pass over all GPUs between nvmlInit and nvmlShutdown."""

    def __init__(self, api: Nvml, node: str, proc: Path) -> None:
        self.api = api
        self.node = node
        self.proc = proc
        self.gpus: list[ObservedGpu] = []
        self.gaps: list[Gap] = []

    def read(self) -> Found:
        """Whole GPUs keep NVML's index; MIG devices are numbered after the last GPU, in NVML's order."""
        try:
            count = self.api.nvmlDeviceGetCount()
        except self.api.NVMLError as error:
            return (), (Gap(self.node, "gpus", f"NVML does not count the GPUs: {_text(error)}"),)
        slices: list[Any] = []
        for index in range(count):
            try:
                handle = self.api.nvmlDeviceGetHandleByIndex(index)
                if self._is_sliced(handle):
                    slices += self._slices(handle)
                else:
                    self.gpus.append(self._gpu(handle, index))
            except self.api.NVMLError as error:
                self._gap(f"GPU {index} cannot be read: {_text(error)}")
        for index, handle in enumerate(slices, start=count):
            try:
                self.gpus.append(self._gpu(handle, index))
            except self.api.NVMLError as error:
                self._gap(f"MIG device {index - count} cannot be read: {_text(error)}")
        return tuple(self.gpus), tuple(self.gaps)

    def _gap(self, reason: str) -> None:
        self.gaps.append(Gap(self.node, "gpus", reason))

    def _is_sliced(self, handle: Any) -> bool:
        mode = self._optional(lambda: self.api.nvmlDeviceGetMigMode(handle))
        return mode is not None and bool(mode[0])

    def _slices(self, handle: Any) -> list[Any]:
        found = []
        for index in range(self.api.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                found.append(self.api.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
            except self.api.NVMLError as error:
                if _code(error) != NOT_FOUND:  # slots without an instance answer so
                    raise
        return found

    def _gpu(self, handle: Any, index: int) -> ObservedGpu:
        memory = self.api.nvmlDeviceGetMemoryInfo(handle)
        rates = self._optional(lambda: self.api.nvmlDeviceGetUtilizationRates(handle))
        uuid = _as_str(self.api.nvmlDeviceGetUUID(handle))
        try:
            holders = self._holders(handle)
        except self.api.NVMLError as error:
            self._gap(f"GPU {index} ({uuid}) does not tell who holds its memory: {_text(error)}")
            holders = ()
        return ObservedGpu(
            node=self.node,
            index=index,
            uuid=uuid,
            name=_as_str(self.api.nvmlDeviceGetName(handle)),
            total_mib=int(memory.total) // MIB,
            used_mib=-(-int(memory.used) // MIB),
            holders=holders,
            utilization=None if rates is None else int(rates.gpu),
        )

    def _holders(self, handle: Any) -> tuple[GpuHolder, ...]:
        """A process of both compute and graphics is listed twice with the same memory: it counts once."""
        used: dict[int, int] = {}
        for listing in (
            self.api.nvmlDeviceGetComputeRunningProcesses,
            self.api.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for process in self._optional(lambda listing=listing: listing(handle)) or ():  # type: ignore[misc]
                mib = int(process.usedGpuMemory or 0) // MIB  # None where the driver does not say
                used[int(process.pid)] = max(mib, used.get(int(process.pid), 0))
        return tuple(
            GpuHolder(pid, holder_name(pid, self.proc), mib, parents_of(pid, self.proc))
            for pid, mib in sorted(used.items())
        )

    def _optional(self, call: Callable[[], T]) -> T | None:
        """The answer, or None where this GPU or this user does not get one."""
        try:
            return call()
        except self.api.NVMLError as error:
            if _code(error) in NOT_SAID:
                return None
            raise


def _code(error: Exception) -> int:
    return int(getattr(error, "value", 0))


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _as_str(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
