"""Looks at a host, as the classes and the management API need them."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from sage_reconcile import adhoc, gatewayd
from sage_reconcile.control.facts import engine_infos
from sage_reconcile.converge import Host
from sage_reconcile.model.desired import ReplicaId
from sage_reconcile.model.management import EngineInfo
from sage_reconcile.model.observed import LastExit, ObservedState
from sage_reconcile.observe.external import look_at_published

T = TypeVar("T")


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, waited for here; also where the caller itself runs in an event loop, which then
    waits with it."""
    results: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the one who waits
            faults.append(error)

    thread = threading.Thread(target=run, name="sage control plane")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return results[0]


async def look(host: Host) -> ObservedState:
    """What is there now, external engines included."""
    observed = await host.eyes.look()
    return replace(observed, external=await look_at_published(observed))


def active(host: Host) -> dict[str, int]:
    """Requests in flight by replica, as the gateway counts them."""
    return gatewayd.active_requests(host.home)


def all_engines(host: Host, observed: ObservedState) -> list[EngineInfo]:
    """Every launch, every external engine, and the entries of adhoc.yaml that have no process."""
    infos = engine_infos(observed, active(host))
    running = {one.engine_id.partition("#")[0] for one in infos}
    exits = dict(observed.exits)
    for name, fields in adhoc.entries_or_fault(host.home)[0].items():
        if f"{adhoc.STACK}/{name}" not in running:
            replica = ReplicaId(adhoc.STACK, name, 0)
            infos.append(_absent(replica, fields, exits.get(replica)))
    return infos


def _absent(replica: ReplicaId, fields: dict[str, Any], last: LastExit | None) -> EngineInfo:
    """An entry without a process: stopped because it says so, else one that should run and does not."""
    is_stopped = fields.get("state") == "stopped"
    message = "" if is_stopped else "does not run"
    if last is not None and not is_stopped:
        message = f"does not run: {last.summary}"
    return EngineInfo(
        engine_id=str(replica),
        model_id=str(fields.get("model")),
        host="127.0.0.1",
        port=int(fields.get("port") or 0),
        state="STOPPED" if is_stopped else "ERROR",
        engine_kind="embedding" if fields.get("kind") == "embedding" else "llm",
        created_at=0.0,
        last_heartbeat=0.0,
        consecutive_failures=0 if is_stopped else 1,
        active_requests=0,
        metadata={str(key): str(value) for key, value in dict(fields.get("metadata") or {}).items()},
        stack=adhoc.STACK,
        runtime=str(fields.get("runtime") or ""),
        url="",
        is_managed=not fields.get("url"),
        message=message,
    )
