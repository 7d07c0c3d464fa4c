"""Hands on this host: supervisors are started, asked to stop, and their leftovers ended."""

import asyncio
import contextlib
import errno
import json
import os
import secrets as random_source
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_reconcile import secrets
from sage_reconcile.apply import adapters, naps, processes
from sage_reconcile.apply.environment import (
    engine_environment,
    launch_context,
    program_of,
    working_directory,
)
from sage_reconcile.apply.failures import ended_late, failure, grace, late
from sage_reconcile.apply.hands import LaunchFailed, Started
from sage_reconcile.engines.registry import runtime
from sage_reconcile.errors import PermanentError, TransientError
from sage_reconcile.home import WOKEN, Home
from sage_reconcile.model import codec
from sage_reconcile.model.actions import Launch
from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import LiveSpec
from sage_reconcile.model.observed import Mark, ObservedGpu, ObservedLaunch, Orphan, Placement
from sage_reconcile.supervisor import spawn
from sage_reconcile.supervisor.records import write_atomic
from sage_reconcile.supervisor.redact import Redactor

TICK = 0.1
"""Seconds between two looks at a record or a process."""

DRAIN_TICK = 0.02
"""Seconds between two looks at what is in flight: whoever waits for the place of an engine waits for it."""

STOP_GRACE = 15.0
"""Seconds that a supervisor gets beyond its drain budget before its launch is ended for it."""

LOG_BYTES = 50 * 1024 * 1024
LOGS_KEPT = 3

TAIL_LINES = 20

MEMORY_GRACE = 30.0
"""Seconds that the driver gets to give the memory of dead processes back."""


@dataclass(frozen=True, slots=True)
class Senses:
    """What the hands must see, given by whoever composes them: they import no observer.

    `gpus` reads the GPUs with their holders (blocking). `in_flight` gives the requests that the gateway has
    under way for a launch id, None when no gateway runs.
    """

    gpus: Callable[[], tuple[ObservedGpu, ...]]
    in_flight: Callable[[str], int | None]


class LocalHands:
    """Hands on this host, for the launches of one SAGE_HOME."""

    def __init__(self, home: Home, senses: Senses, environ: Mapping[str, str] = os.environ) -> None:
        self._home = home
        self._senses = senses
        self._environ = environ
        self._late: dict[str, str] = {}

    async def prepare(self, order: Launch) -> None:
        await asyncio.to_thread(self._prepare, order)

    def _prepare(self, order: Launch) -> None:
        spec, replica = order.spec, order.replica
        context = launch_context(spec, order.placement, self._home, ())
        line = runtime(spec.runtime).command_line(spec, context)
        env = engine_environment(spec, line.env, self._environ)
        program_of(line.argv[0], env, working_directory(spec) or line.cwd)
        self._headers(spec.api_key)
        folder = self._home.ensure().replica_dir(replica.stack, replica.engine, replica.replica)
        try:
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        except OSError as error:
            raise PermanentError(f"cannot write records to {folder}: {error.strerror}") from error

    async def launch(self, order: Launch) -> Started:
        return await asyncio.to_thread(self._launch, order)

    def _launch(self, order: Launch) -> Started:
        spec, replica = order.spec, order.replica
        _require_free(order.placement)
        gpus = self._senses.gpus() if order.placement.gpus else ()
        context = launch_context(spec, order.placement, self._home, gpus, order.counted_mib)
        line = runtime(spec.runtime).command_line(spec, context)
        launch = random_source.token_hex(4)
        mark = Mark(
            home=str(self._home.root),
            replica=replica,
            fingerprint=order.fingerprint,
            launch=launch,
            spec=spec,
            placement=order.placement,
            model=line.model,
        )
        directory = self._home.ensure().launch_dir(replica.stack, replica.engine, replica.replica, launch)
        message = {
            "mark": codec.to_plain(mark),
            "argv": list(line.argv),
            "env": engine_environment(spec, line.env, self._environ),
            "secrets": [name for name, value in spec.env if secrets.refers(value)],
            "cwd": working_directory(spec) or line.cwd,
            "directory": str(directory),
            "live": codec.to_plain(order.live),
            "log": {"max_bytes": LOG_BYTES, "keep": LOGS_KEPT},
            "probe": {
                "url": order.placement.url,
                "model": line.model,
                "headers": self._headers(spec.api_key),
            },
        }
        try:
            directory.mkdir(parents=True, mode=0o700)
            pid = spawn.start(message)
        except OSError as error:
            raise PermanentError(f"cannot start the supervisor: {error}") from error
        return Started(mark, pid, time.time(), str(directory))

    def _headers(self, api_key: str | None) -> dict[str, str]:
        if not api_key:
            return {}
        try:
            return {"authorization": f"Bearer {secrets.resolve(api_key, self._environ)}"}
        except ValueError as error:
            raise PermanentError(f"api_key: {error} where sage runs") from error

    async def await_ready(self, launch: Started | ObservedLaunch, timeout: float) -> None:
        begun = time.monotonic()
        while True:
            record = _record(launch, "launch.json")
            if record.get("state") == "ready":
                return
            if not self._is_supervised(launch):
                raise failure(_record(launch, "exit.json"), self._tail(launch))
            if time.monotonic() - begun > timeout + grace(record, timeout):
                reason = self._late[launch.mark.launch] = late(timeout, str(record.get("message") or ""))
                raise LaunchFailed(reason, self._tail(launch), cause=reason.partition(";")[0])
            await asyncio.sleep(TICK)

    def _is_supervised(self, launch: Started | ObservedLaunch) -> bool:
        return processes.is_supervisor(launch.supervisor_pid, launch.mark.launch, launch.mark.home)

    async def drain(self, launch: ObservedLaunch, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not await asyncio.to_thread(self._senses.in_flight, launch.mark.id):
                return True
            await asyncio.sleep(DRAIN_TICK)
        return False

    async def stop(self, launch: Started | ObservedLaunch, drain: float) -> None:
        name, home, pid = launch.mark.launch, launch.mark.home, launch.supervisor_pid
        members = processes.Members(name, home, pid)
        # Looked at while its parents live: what hides from its mark is known by descent.
        before = await asyncio.to_thread(members.look)
        deadline = time.monotonic() + drain + STOP_GRACE
        if processes.send_to_supervisor(pid, name, home, signal.SIGTERM) and drain <= 0:
            await asyncio.sleep(TICK)
            processes.send_to_supervisor(pid, name, home, signal.SIGTERM)
        while processes.is_supervisor(pid, name, home) and time.monotonic() < deadline:
            await asyncio.sleep(TICK)
        await self._end_members(launch.mark, members, {one.pid for one in before})
        if reason := self._late.pop(name, ""):
            # That it was stopped is known; why is what the next plan should say.
            with contextlib.suppress(OSError):
                write_atomic(
                    Path(launch.directory) / "exit.json", ended_late(_record(launch, "exit.json"), reason)
                )

    async def reap(self, orphan: Orphan) -> None:
        members = processes.Members(orphan.mark.launch, orphan.mark.home, orphan.session)
        await self._end_members(orphan.mark, members, set())

    async def _end_members(self, mark: Mark, members: processes.Members, ended: set[int]) -> None:
        """SIGKILL until no process of the launch is left, then waits until its GPU memory is back."""
        deadline = time.monotonic() + STOP_GRACE
        while left := await asyncio.to_thread(members.look):
            ended.update(one.pid for one in left)
            processes.kill(left)
            if time.monotonic() > deadline:
                pids = ", ".join(str(one.pid) for one in left)
                raise TransientError(f"processes {pids} of {mark.id} do not end, not even by SIGKILL")
            await asyncio.sleep(TICK)
        if mark.placement.gpus:
            await self._memory_back(mark, ended)

    async def _memory_back(self, mark: Mark, ended: set[int]) -> None:
        """Until NVML names none of the ended processes; where it names some that are not seen from here
        (another PID namespace), until what is in use falls no more.
        """
        deadline = time.monotonic() + MEMORY_GRACE
        before: dict[str, int] = {}
        while True:
            gpus = await asyncio.to_thread(self._senses.gpus)
            own = [gpu for gpu in gpus if gpu.uuid in mark.placement.gpus]
            is_held = any(holder.pid in ended for gpu in own for holder in gpu.holders)
            is_hidden = any(not holder.name for gpu in own for holder in gpu.holders)
            falls = is_hidden and any(gpu.used_mib < before.get(gpu.uuid, gpu.used_mib + 1) for gpu in own)
            if not is_held and not falls:
                return
            before = {gpu.uuid: gpu.used_mib for gpu in own}
            if time.monotonic() > deadline:
                if not is_held:
                    return  # what still falls there is not known to be ours
                raise TransientError(f"{mark.id} has ended but its GPU memory is not back")
            await asyncio.sleep(TICK)

    async def update_live(self, launch: ObservedLaunch, live: LiveSpec) -> None:
        path = Path(launch.directory) / "live.json"
        wanted = codec.to_plain(live)
        try:
            await asyncio.to_thread(write_atomic, path, codec.encode(live))
        except OSError as error:
            raise TransientError(f"cannot write {error.filename}: {error.strerror}") from error
        deadline = time.monotonic() + 10.0
        while _record(launch, "launch.json").get("live") != wanted:
            if time.monotonic() > deadline:
                raise TransientError(
                    f"the supervisor of {launch.replica.short} does not take its new settings"
                )
            await asyncio.sleep(TICK)

    async def sleep(self, launch: Started | ObservedLaunch) -> None:
        await naps.sleep(launch, self._senses.gpus)

    async def wake(self, launch: ObservedLaunch) -> None:
        await naps.wake(launch)
        with contextlib.suppress(OSError):  # it only explains, and the engine is awake
            (Path(launch.directory) / WOKEN).touch(mode=0o600)

    async def load_adapter(self, launch: Started | ObservedLaunch, adapter: Adapter) -> None:
        await adapters.load(launch, adapter)

    async def unload_adapter(self, launch: ObservedLaunch, adapter: Adapter) -> None:
        await adapters.unload(launch, adapter)

    def last_line(self, launch: Started | ObservedLaunch) -> str:
        return next(iter(self._tail(launch, 1)), "")

    def _tail(self, launch: Started | ObservedLaunch, lines: int = TAIL_LINES) -> tuple[str, ...]:
        """The engine's last lines without the secrets that it was given: engines like to print those."""
        named = []
        for name, value in launch.mark.spec.env:
            with contextlib.suppress(ValueError):
                named.append((name, secrets.resolve(value, self._environ)))
        hidden = [name for name, value in launch.mark.spec.env if secrets.refers(value)]
        redactor = Redactor(named, secrets=hidden)
        return tuple(redactor.clean(line) for line in _last_lines(launch, lines))


def _require_free(placement: Placement) -> None:
    """Whoever took the port since the plan was made would be asked, answer, and be taken for the engine."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            ours.bind((placement.host, placement.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise TransientError(
                    f"port {placement.port} was taken by another process since the plan was made; plan again"
                ) from error


def _record(launch: Started | ObservedLaunch, name: str) -> dict[str, Any]:
    """A record of the launch; {} while it is not there or is being rewritten."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((Path(launch.directory) / name).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _last_lines(launch: Started | ObservedLaunch, lines: int) -> list[str]:
    with contextlib.suppress(OSError), (Path(launch.directory) / "engine.log").open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 8192))
        text = file.read().decode("utf-8", "replace").splitlines()
        return [line for line in text if line.strip()][-lines:]
    return []
