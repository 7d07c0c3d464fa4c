"""Sleeping and waking, on a real process that can: what the driver shows counts, and what it answers."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest

from sage_reconcile.apply import naps
from sage_reconcile.errors import TransientError
from sage_reconcile.model.desired import CanarySpec, HealthSpec, LiveSpec
from sage_reconcile.model.observed import ObservedGpu, ObservedLaunch
from tests.build import engine, gpu, launch_of, spec
from tests.gateway.world import FakeEngine, free_port

HELD = 70_000


def launch_at(port: int) -> ObservedLaunch:
    """A launch on GPU 0 that holds HELD MiB and answers at this port to the model `fake`."""
    made = launch_of(engine("chat", spec("fake", runtime="vllm", can_sleep=True)), port=port)
    uuid = gpu(0).uuid
    place = replace(made.mark.placement, gpus=(uuid,))
    return replace(made, mark=replace(made.mark, placement=place, model="fake"), gpu_mib=((uuid, HELD),))


def seen(port: int, asleep_mib: int) -> Callable[[], tuple[ObservedGpu, ...]]:
    """What the driver shows: the engine's memory, as the engine itself says whether it sleeps."""

    def gpus() -> tuple[ObservedGpu, ...]:
        told = httpx.get(f"http://127.0.0.1:{port}/is_sleeping", trust_env=False).json()
        used = asleep_mib if told["is_sleeping"] else HELD
        return (replace(gpu(0), used_mib=used + 500),)

    return gpus


def is_asleep(port: int) -> bool:
    told = httpx.get(f"http://127.0.0.1:{port}/is_sleeping", trust_env=False).json()
    return bool(told["is_sleeping"])


def test_to_sleep_and_awake_again() -> None:
    with FakeEngine() as running:
        launch = launch_at(running.port)
        asyncio.run(naps.sleep(launch, seen(running.port, 1300)))
        assert is_asleep(running.port)
        asyncio.run(naps.wake(launch))
        assert not is_asleep(running.port)


def test_memory_that_stays_in_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naps, "FREED_S", 0.2)
    with FakeEngine() as running, pytest.raises(TransientError, match="its GPU memory is not back"):
        asyncio.run(naps.sleep(launch_at(running.port), seen(running.port, HELD)))


def test_gpus_that_cannot_be_seen_are_no_objection() -> None:
    with FakeEngine() as running:
        asyncio.run(naps.sleep(launch_at(running.port), lambda: ()))
        assert is_asleep(running.port)


def test_awake_is_who_answers() -> None:
    with FakeEngine("--wakes-broken") as running:
        launch = launch_at(running.port)
        asyncio.run(naps.sleep(launch, lambda: ()))
        with pytest.raises(TransientError, match="was woken, but does not answer"):
            asyncio.run(naps.wake(launch))


def test_an_engine_that_is_gone() -> None:
    with pytest.raises(TransientError, match="did not follow /sleep"):
        asyncio.run(naps.sleep(launch_at(free_port()), lambda: ()))


def test_one_that_wakes_to_nonsense_is_put_to_sleep_again() -> None:
    with FakeEngine("--answer", "le le le") as running:
        launch = launch_at(running.port)
        canary = CanarySpec("What is the capital of France?", "Paris")
        launch = replace(launch, live=LiveSpec(HealthSpec(canary=canary)))
        asyncio.run(naps.sleep(launch, lambda: ()))
        with pytest.raises(TransientError, match='was answered "le le le", which lacks "Paris"'):
            asyncio.run(naps.wake(launch))
        assert is_asleep(running.port)
