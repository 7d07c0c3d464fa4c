"""Engines that sage routes to but does not own: asked at every look whether they answer."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from sage_reconcile.model.desired import DesiredEngine, DesiredState, EngineState
from sage_reconcile.model.observed import ExternalHealth, Health
from sage_reconcile.observe.probes import probe_ready

REFERENCE = re.compile(r"\$\$\{|\$\{(env|file):([^}]+)\}")


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
        key = resolve_secret(engine.launch.api_key or "", environ)
    except ValueError as error:
        return ExternalHealth(engine.name, Health.UNKNOWN, f"engine {engine.name}: api_key: {error}")
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


def resolve_secret(text: str, environ: Mapping[str, str]) -> str:
    """`${env:X}` and `${file:P}` replaced by what they name, `$${` by a literal `${`.

    Raises ValueError; its message never holds a value.
    """

    def value(match: re.Match[str]) -> str:
        source, name = match.groups()
        if source is None:
            return "${"
        if source == "env":
            if name not in environ:
                raise ValueError(f"environment variable {name} is not set where sage runs")
            return environ[name]
        try:
            return Path(name).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ValueError(f"file {name} cannot be read: {reason}") from None

    return REFERENCE.sub(value, text)
