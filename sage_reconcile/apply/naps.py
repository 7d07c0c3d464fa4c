"""An engine goes to sleep and proves that its GPU memory is back; it wakes and proves that it answers."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from sage_reconcile.apply.hands import Started
from sage_reconcile.errors import TransientError
from sage_reconcile.model.desired import Kind
from sage_reconcile.model.observed import ObservedGpu, ObservedLaunch
from sage_reconcile.supervisor.order import Canary, Health, Target
from sage_reconcile.supervisor.probe import Client, Look, ask_ready

Launched = Started | ObservedLaunch
_PROBES = {Kind.LLM: "generate", Kind.EMBEDDING: "embed"}

TICK = 0.05
REQUEST_S = 120.0
"""Seconds that an engine gets to follow: weights go to host memory and come back."""

FREED_SHARE = 0.5
"""Of what the launch held, so much must be seen to be free. What stays is small, but others come and go."""

FREED_S = 30.0


async def sleep(launch: Launched, gpus: Callable[[], tuple[ObservedGpu, ...]]) -> None:
    """Puts an engine to sleep (vLLM's level 1). Raises TransientError if it does not follow, or if the driver
    shows its memory in use all the same."""
    held = dict(launch.gpu_mib) if isinstance(launch, ObservedLaunch) else {}
    before = await asyncio.to_thread(_used, launch, gpus) if held else {}
    await _post(launch, "/sleep?level=1")
    deadline = time.monotonic() + FREED_S
    while before:
        now = await asyncio.to_thread(_used, launch, gpus)
        if all(now.get(uuid, 0) <= before[uuid] - FREED_SHARE * held.get(uuid, 0) for uuid in before):
            return
        if time.monotonic() > deadline:
            raise TransientError(f"{launch.mark.replica.short} sleeps, but its GPU memory is not back")
        await asyncio.sleep(TICK)


async def wake(launch: ObservedLaunch) -> None:
    """Wakes an engine. Raises TransientError if it does not follow, or then does not really answer."""
    await _post(launch, "/wake_up")
    look = await asyncio.to_thread(_ask, launch)
    if not look.is_ok:
        if look.canary:
            # Awake it would be routed to; asleep it can be looked at.
            with contextlib.suppress(TransientError):
                await _post(launch, "/sleep?level=1")
        name = launch.mark.replica.short
        raise TransientError(f"{name} was woken, but does not answer as it should: {look.message}")


def _ask(launch: ObservedLaunch) -> Look:
    mark = launch.mark
    kind = launch.live.health.probe.value if launch.live else _PROBES[mark.spec.kind]
    target = Target(mark.placement.host, mark.placement.port, mark.model, {})
    asked = launch.live.health.canary if launch.live else None
    canary = Canary(asked.prompt, asked.expect, asked.max_tokens) if asked else None
    health = Health(kind, "/health", REQUEST_S, REQUEST_S, REQUEST_S, 1, canary)
    return ask_ready(Client(target, REQUEST_S), health)


def _used(launch: Launched, gpus: Callable[[], tuple[ObservedGpu, ...]]) -> dict[str, int]:
    """MiB in use, by whomever, on the GPUs of a launch; nothing where they cannot be seen."""
    return {gpu.uuid: gpu.used_mib for gpu in gpus() if gpu.uuid in launch.mark.placement.gpus}


async def _post(launch: Launched, path: str) -> None:
    import httpx

    url = f"{launch.mark.placement.url}{path}"
    try:
        async with httpx.AsyncClient(timeout=REQUEST_S, trust_env=False) as client:
            reply = await client.post(url)
        reply.raise_for_status()
    except httpx.HTTPError as error:
        raise TransientError(f"{launch.mark.replica.short} did not follow {path}: {error}") from error
