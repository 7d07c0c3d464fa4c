"""Engines that sage routes to but does not own: asked at every look whether they answer."""

import asyncio
from collections.abc import Mapping

from sage_reconcile import secrets
from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState
from sage_reconcile.model.observed import ExternalHealth, Health


async def look_outside(
    desired: DesiredState | None, environ: Mapping[str, str], bound: asyncio.Semaphore
) -> tuple[ExternalHealth, ...]:
    """The health of every external engine that is to be used, in the order of the stack."""
    engines = [
        engine
        for engine in (desired.engines if desired else ())
        if engine.launch.is_external and engine.state is not EngineState.STOPPED
    ]
    return tuple(await asyncio.gather(*(_probe(engine, environ, bound) for engine in engines)))


async def _probe(
    engine: DesiredEngine, environ: Mapping[str, str], bound: asyncio.Semaphore
) -> ExternalHealth:
    """READY, FAILING with its reason, or UNKNOWN: no answer in time may be a busy engine."""
    try:
        key = secrets.resolve(engine.launch.api_key or "", environ)
    except ValueError as error:
        return ExternalHealth(engine.name, Health.UNKNOWN, f"engine {engine.name}: api_key: {error}")
    from sage_reconcile.observe.probes import probe_ready

    headers = {"authorization": f"Bearer {key}"} if key else {}
    health = engine.live.health
    async with bound:
        result = await probe_ready(
            base_url(engine.launch.url or ""),
            engine.launch.model,
            health.probe,
            health.path,
            health.timeout,
            headers,
        )
    if result.ok:
        return ExternalHealth(engine.name, Health.READY)
    state = Health.UNKNOWN if result.is_silent else Health.FAILING
    return ExternalHealth(engine.name, state, result.message)


def base_url(url: str) -> str:
    """The address without a trailing slash or the /v1 that clients are used to write."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
