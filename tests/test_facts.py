"""Facts on disk: private, bounded, and never a reason for anything to fail. And hands with a clock."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from sage_reconcile import facts
from sage_reconcile.apply.timing import TimedHands
from sage_reconcile.errors import TransientError
from sage_reconcile.home import Home
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.observed import Health, Mark
from tests.build import engine, launch_of, node, spec
from tests.fakes import FakeWorld

FACT = Fact("abc", "H100", 81559, "demo/chat", "m", "vllm", 10.0, held_mib=5)


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert facts.read(home) == ()
    cpu = replace(FACT, gpu="", gpu_total_mib=0, engine="demo/a")
    facts.write(home, [FACT, cpu])
    facts.write(home, [replace(FACT, held_mib=6)])
    assert facts.read(home) == (cpu, replace(FACT, held_mib=6))
    assert [path.stat().st_mode & 0o777 for path in home.facts.iterdir()] == [0o600, 0o600]


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    home = Home(tmp_path)
    facts.write(home, [FACT])
    (home.facts / "broken.json").write_text('{"fingerprint": 3')
    (home.facts / "folder.json").mkdir()
    assert facts.read(home) == (FACT,)


def test_a_folder_that_cannot_be_written_costs_facts_and_nothing_else(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.facts.write_text("in the way")
    facts.write(home, [FACT])
    facts.note(home, FACT, "sleep", 0.5)
    assert facts.read(home) == ()


def test_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    monkeypatch.setattr(facts, "KEEP", 3)
    facts.write(home, [replace(FACT, fingerprint=f"f{n}", at=float(n)) for n in range(5)])
    assert [fact.fingerprint for fact in facts.read(home)] == ["f2", "f3", "f4"]


def test_times_are_put_beside_what_is_known(tmp_path: Path) -> None:
    home = Home(tmp_path)
    facts.write(home, [FACT])
    for what, seconds in (("sleep", 0.333), ("wake", 0.04), ("stop", 2.0)):
        facts.note(home, replace(FACT, held_mib=None, at=20.0), what, seconds)
    (found,) = facts.read(home)
    assert found == replace(FACT, at=20.0, sleep_seconds=0.33, wake_seconds=0.04, stop_seconds=2.0)


def test_only_what_is_meant_is_forgotten(tmp_path: Path) -> None:
    home = Home(tmp_path)
    other = replace(FACT, fingerprint="other")
    facts.write(home, [FACT, other])
    assert facts.forget(home, lambda fact: fact.fingerprint == "other") == (other,)
    assert facts.read(home) == (FACT,)


class Noted:
    """What the clock told; each reading of it is one second later."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, float]] = []
        self._now = 0.0

    async def note(self, mark: Mark, what: str, seconds: float) -> None:
        self.told.append((mark.launch, what, seconds))

    def now(self) -> float:
        self._now += 1.0
        return self._now


def test_the_clock_tells_what_went_well() -> None:
    world, noted = FakeWorld([node()]), Noted()
    hands = TimedHands(world, noted.note, noted.now)
    served = launch_of(engine("chat", spec(runtime="vllm", can_sleep=True)))
    world.add(served)

    async def all_of_it() -> None:
        await hands.sleep(served)
        await hands.wake(served)
        world.script.sleepless.add("chat")
        with pytest.raises(TransientError):
            await hands.sleep(served)
        await hands.stop(replace(served, health=Health.STARTING), 0.0)
        await hands.stop(served, 0.0)

    asyncio.run(all_of_it())
    assert noted.told == [("l1", "sleep", 1.0), ("l1", "wake", 1.0), ("l1", "stop", 1.0)]
