"""The classes on this host, with fake engines as real processes."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sage_reconcile.control import ControlPlaneManager, EngineLifecycleManager
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from tests.control.world import fake_runtime
from tests.e2e.world import World
from tests.gateway.world import FakeEngine
from tests.processes import free_port, is_alive
from tests.waiting import wait_until


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path / "work", tmp_path / "work" / "home")
    monkeypatch.setenv("SAGE_HOME", str(made.home))
    monkeypatch.setenv("SAGE_DISABLE_NVML", "1")
    fake_runtime(Home(made.home))
    yield made
    made.tidy()


def test_a_stop_ends_the_whole_tree(world: World) -> None:
    """Once a signal went to the parent only, and its workers kept the GPU; output went to /dev/null."""
    engines = EngineLifecycleManager()
    args = {"children": 2, "stubborn-children": True, "print-bytes": 100}
    engines.spawn_engine("org/m", runtime="fake", port=free_port(), args=args, wait=True)
    pids = world.until_ready("m#0", stack="adhoc")["m#0"]
    children = Path(f"/proc/{pids.engine}/task/{pids.engine}/children").read_text().split()
    assert len(children) == 2
    log = world.home / "run" / "adhoc" / "m.0" / pids.launch / "engine.log"
    assert log.stat().st_size > 0
    assert asyncio.run(engines.health_check_all()) == {"adhoc/m#0": True}
    assert engines.stop_engine("m")
    assert not any(is_alive(pid) for pid in (pids.engine, *map(int, children)))
    assert not asyncio.run(engines.health_check("m"))


def test_a_dying_engine_is_never_told_to_run(world: World) -> None:
    """Once a crash was masked as running."""
    engines = EngineLifecycleManager()
    args = {"exit-at-start": 7, "exit-message": "no such weights"}
    with pytest.raises(PermanentError, match=r"no such weights"):
        engines.spawn_engine("org/m", runtime="fake", port=free_port(), args=args, wait=True)
    assert engines.list_engines() == []
    engine_id = engines.spawn_engine("org/m", runtime="fake", port=free_port(), args=args)
    wait_until(lambda: engines.get_engine_status(engine_id).state == "ERROR", "it is told")
    assert "exited with code 7" in engines.get_engine_status(engine_id).message


def test_what_should_run_is_kept_running(world: World) -> None:
    manager = ControlPlaneManager(health_check_interval=1.0)
    assert (
        manager.request_engine_startup("org/m", runtime="fake", port=free_port(), wait=True).state == "READY"
    )
    before = world.pids("adhoc")["m#0"]

    async def live() -> None:
        await manager.start()
        os.kill(before.supervisor, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: not is_alive(before.engine), "the engine is gone")
        after = await asyncio.to_thread(world.until_ready, "m#0", stack="adhoc")
        assert after["m#0"].supervisor != before.supervisor
        await manager.stop()
        assert await manager.stop_engine_gracefully("m")

    asyncio.run(live())
    assert not world.launches("adhoc")


def test_an_engine_elsewhere_is_registered(world: World) -> None:
    manager = ControlPlaneManager()
    with FakeEngine(model="far") as far:
        info = manager.register_engine("far", far.url)
        assert (info.state, info.is_managed) == ("READY", False)
        with pytest.raises(PermanentError, match=r"does not serve near; it serves: far"):
            manager.register_engine("near", far.url)
        assert manager.request_engine_shutdown("far") is None
        assert far.process.poll() is None
