"""Engines that sage routes to but does not own: asked at every look whether they answer."""

import asyncio
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from sage_reconcile import secrets
from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState
from sage_reconcile.model.observed import ExternalHealth, Health, ObservedState
from sage_reconcile.model.routing import Backend
from sage_reconcile.observe.connect import connect_error

CONNECT_SECONDS = 2.0

_OF_TABLE = {
    "ready": (Health.READY, ""),
    "pending": (Health.FAILING, "did not answer when routes were published last"),
}


async def look_outside(
    desired: DesiredState | None, environ: Mapping[str, str], bound: asyncio.Semaphore
) -> tuple[ExternalHealth, ...]:
    """The health of every external engine that is to be used, in the order of the stack."""
    if desired is None:
        return ()
    engines = [
        engine
        for engine in desired.engines
        if engine.launch.is_external and engine.state is not EngineState.STOPPED
    ]
    return tuple(await asyncio.gather(*(_probe(desired.stack, one, environ, bound) for one in engines)))


async def look_at_published(observed: ObservedState) -> tuple[ExternalHealth, ...]:
    """The health of every external engine of the published table, in its order: as probed by this look, else
    as published, unless nothing can be reached there now."""
    probed = {(one.stack, one.engine): one for one in observed.external}
    published = observed.routing.backends if observed.routing else ()
    external = [backend for backend in published if backend.is_external]
    unasked = [backend for backend in external if (backend.stack, backend.engine) not in probed]
    for health in await asyncio.gather(*map(_as_published, unasked)):
        probed[health.stack, health.engine] = health
    return tuple(probed[backend.stack, backend.engine] for backend in external)


async def _as_published(backend: Backend) -> ExternalHealth:
    state, message = _OF_TABLE.get(backend.state, (Health.UNKNOWN, "gets no new requests"))
    address = urlsplit(backend.url)
    port = address.port or (443 if address.scheme == "https" else 80)
    error = await connect_error(address.hostname or "", port, CONNECT_SECONDS)
    if error is not None:
        state, message = Health.FAILING, f"does not answer: {_in_words(error)}"
    return ExternalHealth(backend.engine, state, message, backend.stack)


def _in_words(error: OSError) -> str:
    """asyncio puts addresses where the words should be, and no number where a name has several addresses."""
    if error.errno is None:
        return "no connection"
    return os.strerror(error.errno).lower() if error.errno > 0 else str(error.strerror)


async def _probe(
    stack: str, engine: DesiredEngine, environ: Mapping[str, str], bound: asyncio.Semaphore
) -> ExternalHealth:
    """READY, FAILING with its reason, or UNKNOWN: no answer in time may be a busy engine."""
    try:
        key = secrets.resolve(engine.launch.api_key or "", environ)
    except ValueError as error:
        return ExternalHealth(engine.name, Health.UNKNOWN, f"cannot be asked: api_key: {error}", stack)
    from sage_reconcile.observe.probes import probe_ready

    headers = {"authorization": f"Bearer {key}"} if key else {}
    health = engine.live.health
    async with bound:
        result = await probe_ready(
            engine.launch.base_url,
            engine.launch.model,
            health.probe,
            health.path,
            health.timeout,
            headers,
        )
    if result.ok:
        return ExternalHealth(engine.name, Health.READY, stack=stack)
    if result.is_silent:
        return ExternalHealth(engine.name, Health.UNKNOWN, f"gave {result.message}", stack)
    how = "answers, but not as it should" if result.has_answered else "does not answer"
    return ExternalHealth(engine.name, Health.FAILING, f"{how}: {result.message}", stack)
