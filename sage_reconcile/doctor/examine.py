"""All checks of one host. A check that itself fails is a finding, never the end of the others."""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sage_reconcile import gatewayd
from sage_reconcile.doctor.environments import check_environment
from sage_reconcile.doctor.finding import Finding, fault, ok
from sage_reconcile.doctor.gpu import check_driver, check_wanted
from sage_reconcile.doctor.host import (
    check_clock,
    check_disks,
    check_home,
    check_kernel,
    check_limits,
    check_shm,
    newest_file,
)
from sage_reconcile.doctor.hub import check_cache, check_hub
from sage_reconcile.doctor.interpreters import interpreters
from sage_reconcile.doctor.ports import check_ports
from sage_reconcile.errors import StackError
from sage_reconcile.gatewayd.processes import members
from sage_reconcile.home import Home
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.observe.deadline import Deadline
from sage_reconcile.observe.gpus import Driver, read_driver
from sage_reconcile.observe.look import GPU_SECONDS, LocalEyes

DEFAULT_GATEWAY_PORT = 8000


@dataclass(frozen=True, slots=True)
class Patient:
    """The host under examination, and the stack that it is meant to run, where one is known."""

    home: Home
    desired: DesiredState | None
    environ: Mapping[str, str]
    import_seconds: float


async def examine(patient: Patient) -> list[Finding]:
    """Every finding, in the order in which they are read; never raises."""
    eyes = LocalEyes(patient.home, environ=patient.environ)
    driver, observed = await asyncio.gather(_driver(), eyes.look())
    gpus = [gpu for gpu in observed.gpus if not gpu.is_mock]
    hub = asyncio.create_task(_later("hub", check_hub(patient.environ)))
    runtimes = await _environments(patient, driver)
    gaps = tuple(gap for gap in observed.gaps if gap.what == "gpus")
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("driver", lambda: check_driver(driver, (observed.gpus, gaps), patient.environ)),
        ("GPUs", lambda: check_wanted(patient.desired, (observed.gpus, gaps))),
        ("runtimes", lambda: runtimes),
        ("programs", lambda: check_programs(patient.desired, patient.environ)),
        ("kernel", check_kernel),
        ("limits", lambda: check_limits(len(gpus))),
        ("/dev/shm", lambda: check_shm(len(gpus))),
        ("SAGE_HOME", lambda: check_home(patient.home)),
        ("disk", lambda: check_disks(patient.home, patient.environ)),
        ("ports", lambda: _ports(patient, observed)),
        ("clock", lambda: check_clock(time.time(), newest_file(patient.home))),
        ("model cache", lambda: check_cache(patient.environ)),
    )
    found = [finding for about, check in checks for finding in _guarded(about, check)]
    return [*found, *await hub]


def check_programs(desired: DesiredState | None, environ: Mapping[str, str]) -> Iterable[Finding]:
    """The program of every engine that is a command."""
    for engine in desired.engines if desired else ():
        spec = engine.launch
        if spec.runtime != "command" or not spec.command:
            continue
        name, path = spec.command[0], dict(spec.env).get("PATH", environ.get("PATH"))
        whole = os.path.join(spec.cwd, name) if spec.cwd and os.sep in name else name
        where = shutil.which(whole, path=path)
        if where is None:
            hint = "install it, or give its whole path in `command`"
            yield fault(f"engine {engine.name}", f"there is no program {name}", hint)
        else:
            yield ok(f"engine {engine.name}", where)


def stack_findings(error: StackError) -> list[Finding]:
    """What is wrong with the file itself."""
    hint = "mend the file: sage validate"
    return [fault("stack file", str(one).replace(": error:", ":"), hint) for one in error.faults]


async def _environments(patient: Patient, driver: Driver) -> list[Finding]:
    asked = (
        _later(one.called, check_environment(one, patient.environ, driver.cuda, patient.import_seconds))
        for one in interpreters(patient.home, patient.desired)
    )
    found = [finding for findings in await asyncio.gather(*asked) for finding in findings]
    if found:
        return found
    return [ok("runtimes", f"none in {patient.home.runtimes}, and no stack file asks for one")]


async def _driver() -> Driver:
    try:
        return await Deadline("NVML", GPU_SECONDS, read_driver)()
    except Exception as error:  # noqa: BLE001 - a driver can fail in any way; all of them are one finding
        return Driver(is_loaded=True, code=-1, fault=str(error) or type(error).__name__)


def _ports(patient: Patient, observed: ObservedState) -> Iterable[Finding]:
    running = gatewayd.find(patient.home)
    stack = patient.desired.gateway.port if patient.desired else DEFAULT_GATEWAY_PORT
    port = running.options.port if running else stack
    pids = {process.pid for process in members(patient.home)}
    return check_ports(observed, patient.desired, port, pids)


async def _later(about: str, check: Coroutine[Any, Any, list[Finding]]) -> list[Finding]:
    try:
        return await check
    except Exception as error:  # noqa: BLE001 - one check must not hide what the others found
        return [_failed(about, error)]


def _guarded(about: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in check():
            found.append(finding)  # one by one: what came before a failure is kept
    except Exception as error:  # noqa: BLE001 - one check must not hide what the others found
        found.append(_failed(about, error))
    return found


def _failed(about: str, error: Exception) -> Finding:
    message = f"this check itself failed: {type(error).__name__}: {error}"
    return fault(about, message, "please report it; the other checks hold")
