"""The NVIDIA driver and NVML."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from sage_reconcile.doctor.finding import Finding, fault, ok, warning
from sage_reconcile.model.desired import DesiredState, Device
from sage_reconcile.observe.gpus import LIBRARY_NOT_FOUND, VERSIONS_DIFFER, Driver, Found

PCI = Path("/sys/bus/pci/devices")
NVIDIA = "0x10de"
DISPLAY = "0x03"  # the class of display controllers, 3D ones included
ABOUT = "driver"


def check_driver(
    driver: Driver, found: Found, environ: Mapping[str, str], pci: Path = PCI
) -> Iterator[Finding]:
    """The driver itself, then each GPU that cannot be read."""
    gpus, gaps = found
    is_absent = driver.code == LIBRARY_NOT_FOUND and not driver.is_loaded
    if not driver.fault:
        cuda = "{}.{}".format(*driver.cuda) if driver.cuda else "?"
        yield ok(ABOUT, f"NVIDIA driver {driver.version}, supports CUDA {cuda}")
    elif is_absent:
        yield _without_driver(pci)
    else:
        yield _failing(driver)
    if any(gpu.is_mock for gpu in gpus):
        message = f"{len(gpus)} pretended GPUs instead of this host's"
        yield warning("GPUs", message, "unset SAGE_GPU_MOCK_COUNT to use the real ones")
    elif environ.get("SAGE_DISABLE_NVML") and not driver.fault:
        yield warning("GPUs", "none is used: SAGE_DISABLE_NVML is set", "unset SAGE_DISABLE_NVML")
    elif gpus:
        names = ", ".join(f"{gpu.index}: {gpu.name}, {gpu.total_mib:,} MiB" for gpu in gpus)
        yield ok("GPUs", names)
    for gap in gaps if is_absent or not driver.fault else ():  # else they say the same once more
        yield fault("GPUs", gap.reason, "see `nvidia-smi` and the kernel's log (dmesg)")


def check_wanted(desired: DesiredState | None, found: Found) -> Iterator[Finding]:
    """Engines that want GPUs where there are too few."""
    gpus, gaps = found
    needs = {
        engine.name: engine.launch.gpu_count
        for engine in (desired.engines if desired else ())
        if engine.launch.device is Device.GPU and not engine.launch.is_external
    }
    short = [name for name, count in needs.items() if count > len(gpus)]
    if short and not gaps:
        hint = "`use_gpu: false` for them, or another host"
        message = f"{', '.join(short)} of the stack need up to {max(needs.values())}, there are {len(gpus)}"
        yield fault("GPUs", message, hint)


def _without_driver(pci: Path) -> Finding:
    if _has_nvidia_gpu(pci):
        hint = "install the driver, or `modprobe nvidia`; in a container: run it with `--gpus all`"
        return fault(ABOUT, "there is an NVIDIA GPU in the machine, and no driver for it", hint)
    return ok(ABOUT, "no NVIDIA GPU and no driver: engines run on the CPU")


def _failing(driver: Driver) -> Finding:
    if driver.code == VERSIONS_DIFFER:
        message = f"NVML and the kernel module are of different versions ({driver.fault})"
        return fault(ABOUT, message, "the driver was updated while loaded: reboot, or reload the module")
    if driver.code == LIBRARY_NOT_FOUND:
        hint = "install the driver's libraries (libnvidia-ml.so.1); in a container: `--gpus all`"
        return fault(ABOUT, "the kernel has the driver, and NVML's library is not there", hint)
    hint = "see `nvidia-smi` and the kernel's log (dmesg); a reboot mends most of it"
    return fault(ABOUT, f"NVML fails: {driver.fault}", hint)


def _has_nvidia_gpu(pci: Path) -> bool:
    for device in pci.glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        except OSError:
            continue
        if vendor.strip() == NVIDIA and kind.startswith(DISPLAY):
            return True
    return False
