"""What the kernel and the disks of this host allow."""

import ctypes
import os
import resource
import shutil
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from sage_reconcile.doctor.finding import Finding, fault, ok, warning
from sage_reconcile.home import Home

GIB = 1024**3
MIB = 1024**2
ENOUGH_FILES = 4096
ENOUGH_SHM = GIB
# Records and logs stop below this; a model of a few billion parameters does not fit below that.
LEAST_DISK = 200 * MIB
LOW_DISK = 20 * GIB
PR_GET_CHILD_SUBREAPER = 37
CLOCK_UNSYNCHRONISED = 5
TIMEX_BYTES = 512
DAY = 86400.0


def check_limits(gpus: int) -> Iterator[Finding]:
    """Open files and locked memory, as this shell would pass them on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < ENOUGH_FILES:
        hint = f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}; in a unit LimitNOFILE=65536"
        yield warning("open files", f"{soft} at most: each connection of the gateway takes one", hint)
    else:
        yield ok("open files", f"{_limit(soft)} at most")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if gpus > 1 and locked != resource.RLIM_INFINITY and locked < 64 * MIB:
        hint = "ulimit -l unlimited; in a unit LimitMEMLOCK=infinity"
        yield warning("locked memory", f"{_size(locked)} at most: NCCL may want more", hint)
    else:
        shown = "unlimited" if locked == resource.RLIM_INFINITY else f"{_size(locked)} at most"
        yield ok("locked memory", shown)


def check_shm(gpus: int, path: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Workers of one engine talk through it. Containers get 64 MiB by default."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        yield fault(str(path), f"not usable: {error.strerror}", "mount a tmpfs there")
        return
    shown = f"{_size(usage.free)} free of {_size(usage.total)}"
    if usage.free < (ENOUGH_SHM if gpus > 1 else 64 * MIB):
        hint = "a container: `--shm-size 8g` or `--ipc=host`; else remove old files there"
        yield warning(str(path), f"{shown}: workers of one engine talk through it", hint)
    else:
        yield ok(str(path), shown)


def check_disks(home: Home, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Where records, models and the hub's cache lie; one line a file system."""
    places = {"SAGE_HOME": home.root, "models": home.models, "model cache": hub_cache(environ)}
    seen: dict[int, list[str]] = {}
    paths: dict[int, Path] = {}
    for name, path in places.items():
        there = _existing(path)
        try:
            device = there.stat().st_dev
        except OSError as error:
            yield fault(f"disk of {name}", f"{path}: {error.strerror}", "mount it, or choose another folder")
            continue
        seen.setdefault(device, []).append(name)
        paths.setdefault(device, there)
    for device, names in seen.items():
        yield _disk(f"disk of {', '.join(names)}", paths[device], "models" in names or "model cache" in names)


def _disk(about: str, path: Path, has_models: bool) -> Finding:
    usage = shutil.disk_usage(path)
    shown = f"{_size(usage.free)} free of {_size(usage.total)}"
    if usage.free < LEAST_DISK:
        return fault(about, f"{shown}: records and logs cannot be written soon", "free space")
    if has_models and usage.free < LOW_DISK:
        return warning(about, shown, "free space before a large model is downloaded")
    return ok(about, shown)


def check_home(home: Home) -> Iterator[Finding]:
    """Owner and mode: whoever may write here may give orders to supervisors."""
    about, root = "SAGE_HOME", home.root
    try:
        info = root.stat()
    except FileNotFoundError:
        there = _existing(root)
        if os.access(there, os.W_OK | os.X_OK):
            yield ok(about, f"{root} is made on first use")
        else:
            yield fault(about, f"{root} cannot be made: {there} is not writable", "set SAGE_HOME to another")
        return
    except OSError as error:
        yield fault(about, f"{root}: {error.strerror}", "set SAGE_HOME to a folder of your own")
        return
    mode = stat.S_IMODE(info.st_mode)
    if not stat.S_ISDIR(info.st_mode):
        yield fault(about, f"{root} is no folder", "set SAGE_HOME to a folder of your own")
    elif info.st_uid != os.getuid():
        hint = "run sage as its owner, or set SAGE_HOME to a folder of your own"
        yield fault(about, f"{root} belongs to user {info.st_uid}, this is user {os.getuid()}", hint)
    elif not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield fault(about, f"{root} is not writable", f"chmod 700 {root}")
    elif mode & 0o077:
        yield warning(about, f"{root} has mode {mode:o}: others may read it", f"chmod 700 {root}")
    else:
        yield ok(about, f"{root}, mode {mode:o}, yours")


def check_kernel() -> Iterator[Finding]:
    """pidfds to hit no other process, a subreaper so that no worker gets lost."""
    works = {"pidfd": _has_pidfd(), "subreaper": _has_subreaper()}
    missing = [name for name, is_there in works.items() if not is_there]
    release = os.uname().release
    if missing:
        hint = "Linux 5.3 or newer; a sandbox (seccomp) may forbid the calls"
        yield fault("kernel", f"Linux {release} lacks {' and '.join(missing)}", hint)
    else:
        yield ok("kernel", f"Linux {release}: pidfd, subreaper")


def _has_pidfd() -> bool:
    try:
        handle = os.pidfd_open(os.getpid())
        try:
            signal.pidfd_send_signal(handle, 0)
        finally:
            os.close(handle)
    except (OSError, AttributeError):
        return False
    return True


def _has_subreaper() -> bool:
    is_set = ctypes.c_int()
    return bool(ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(is_set), 0, 0, 0) == 0)


def check_clock(now: float, newest: float) -> Iterator[Finding]:
    """`newest` is the time of the newest file known to be older than now; both in epoch seconds."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < newest - DAY:
        written = time.strftime("%Y-%m-%d", time.gmtime(newest))
        hint = "set it (chrony, systemd-timesyncd): certificates and keys fail by it"
        yield fault("clock", f"{shown}, and a file of sage was written on {written}", hint)
    elif _is_unsynchronised():
        hint = "chrony or systemd-timesyncd, unless the hypervisor keeps it"
        yield warning("clock", f"{shown}, not synchronised as far as the kernel knows", hint)
    else:
        yield ok("clock", f"{shown}, synchronised")


def _is_unsynchronised() -> bool:
    # With `modes` 0 adjtimex only reads; its result is the state of the clock.
    return bool(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)) == CLOCK_UNSYNCHRONISED)


def newest_file(home: Home) -> float:
    """When sage itself, or its journal, was written last."""
    times = [0.0]
    for path in (Path(__file__), home.root / "events.jsonl", home.routing_file):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where Hugging Face libraries keep models, by their own variables."""
    if given := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(given).expanduser()
    root = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(root).expanduser() / "hub"


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def _size(number: float) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / MIB:.0f} MiB"
