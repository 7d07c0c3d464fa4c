"""`sage lease` on pretended GPUs and real processes."""

import re
from typing import Any

import pytest

from tests.e2e.world import World, engine
from tests.waiting import wait_until

LEASED = r"leased to \S+ until \d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?: fine-tuning"


@pytest.fixture
def world(world: World) -> World:
    """With two GPUs."""
    world.environ |= {"SAGE_GPU_MOCK_COUNT": "2"}
    return world


def on_gpu(name: str = "chat", **fields: Any) -> dict[str, Any]:
    return engine(name, use_gpu=True, gpus=[0], gpu_memory="20GiB", **fields)


def test_an_engine_ends_for_a_lease_and_starts_when_it_is_over(world: World) -> None:
    world.write(on_gpu(), engine("cpu"))
    watcher = world.start("watch", "--interval", "600")
    before = world.until_ready("chat#0", "cpu#0")
    watcher.says("ok", "start chat#0")
    told = world("lease", "0", "--until", "4s", "--reason", "fine-tuning").ok().out
    assert re.search(rf"GPU 0 \(.*\) is {LEASED}\n", told)
    assert "on it now: demo/chat#0" in told
    assert f"(process {watcher.pid}) frees it" in told
    line = watcher.says("stop     chat#0  its GPU is leased to")
    watcher.says("ok", "stop chat#0", after=line)
    after = world.until_ready("chat#0", "cpu#0")
    assert after["chat#0"] != before["chat#0"]
    assert after["cpu#0"] == before["cpu#0"]
    watcher.says("start    chat#0", after=line)
    events = [(event["kind"], event["message"]) for event in world("events", "--json").ok().json()]
    assert any(kind == "lease" and re.fullmatch(LEASED, text) for kind, text in events)
    assert any(kind == "lease over" for kind, _ in events)
    assert world("lease").ok().out == "no GPU is leased\n"


def test_what_a_lease_says_and_how_it_is_ended(world: World) -> None:
    world.write(on_gpu())
    world.apply()
    given = world("lease", "0", "--until", "2h", "--reason", "fine-tuning").ok().out
    assert "no watcher runs: `sage apply` frees it" in given
    again = world("lease", "0", "--until", "1h", "--reason", "me too").failed().err
    assert re.fullmatch(rf"error: GPU 0: it is {LEASED} already; `sage lease --end` ends that\n", again)
    assert re.search(LEASED, world("status").ok().out)
    (listed,) = world("lease", "--list", "--json").ok().json()
    assert (listed["gpu"], listed["reason"], listed["asleep"]) == (0, "fine-tuning", False)
    world.apply()
    wait_until(lambda: not world.pids(), "the engine has ended")
    held = world("apply", "--yes").failed().out  # nothing to do, and not what the file says
    assert "hold     chat#0  waits for a GPU" in held
    assert re.search(LEASED, held)
    assert "the lease of GPU 0 has ended" in world("lease", "--end", "0").ok().out
    assert world("lease", "--end", "0").failed().err.startswith("error: GPU 0 is not leased;")
    world.apply()
    world.is_settled()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("7", "--until", "2h", "--reason", "x"), "there is no GPU 7 on this host; there is 0 ("),
        (("0", "--reason", "x"), "--until is missing"),
        (("0", "--until", "2h"), "--reason is missing"),
        (("0", "--until", "soon", "--reason", "x"), "--until soon is no time; write 2h,"),
        (("0", "--until", "2020-01-01", "--reason", "x"), "is over already"),
        (("0", "--until", "0s", "--reason", "x"), "is over already"),
        (("--until", "2h"), "which GPU?"),
        (("0", "--list"), "one at a time"),
    ],
)
def test_what_cannot_be_is_told(world: World, words: tuple[str, ...], message: str) -> None:
    assert message in world("lease", *words).failed().err


def test_a_damaged_lease_is_said_and_stops_nothing(world: World) -> None:
    world.write(on_gpu())
    world.apply()
    folder = world.home / "leases"
    folder.mkdir()
    (folder / "GPU-0.json").write_text("{")
    shown = world("plan").ok().out
    assert "cannot see leases of" in shown
    assert "GPU-0.json is no lease that can be read" in shown
    assert "No changes" in shown
