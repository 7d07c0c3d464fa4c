"""The faults: how each is made, when it is over, and what `sage events` must say of it."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.world import ask
from tests.faults.stack import Fleet, end_group
from tests.processes import is_alive
from tests.waiting import wait_until

HUNG_S = 60.0


@dataclass(frozen=True)
class Kind:
    """`make` brings the fault over engine `name`, and returns when nobody but sage can end it.

    `words`: of an event that tells of it, whose subject holds `subject`.
    """

    make: Callable[[Fleet, str], None]
    words: tuple[str, ...]
    subject: str = "{name}#0"
    needs_worker: bool = False
    needs_disk: bool = False
    needs_clock: bool = False

    def is_possible(self, fleet: Fleet) -> bool:
        """Whether it can be made here: some need root, or a library."""
        return (fleet.is_mounted or not self.needs_disk) and (fleet.clock.is_settable or not self.needs_clock)


def kill_engine(fleet: Fleet, name: str) -> None:
    end_group([fleet.pids()[f"{name}#0"].engine])


def kill_worker(fleet: Fleet, name: str) -> None:
    _, workers = fleet.processes(name)
    end_group([workers[0].pid])


def kill_supervisor(fleet: Fleet, name: str) -> None:
    end_group([fleet.pids()[f"{name}#0"].supervisor])


def kill_both(fleet: Fleet, name: str) -> None:
    pids = fleet.pids()[f"{name}#0"]
    end_group([pids.supervisor, pids.engine])


def kill_watcher(fleet: Fleet, name: str) -> None:
    """With an engine's supervisor, so that the next watcher has something to mend."""
    assert fleet.watcher is not None
    end_group([fleet.watcher.pid, fleet.pids()[f"{name}#0"].supervisor])
    fleet.watcher.put_down()
    fleet.watch()


def kill_gateway_worker(fleet: Fleet, name: str) -> None:
    end_group(fleet.workers()[:1])


def freeze(fleet: Fleet, name: str) -> None:
    """Nothing answers any more, but the process is there."""
    pid = fleet.pids()[f"{name}#0"].engine
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: not is_alive(pid), f"{name}, which is stopped, is ended", HUNG_S)


def _switched(key: str, fleet: Fleet, name: str) -> None:
    """The engine misbehaves until somebody ends it."""
    pid = fleet.pids()[f"{name}#0"].engine
    fleet.switch(name, key).touch()
    try:
        wait_until(lambda: not is_alive(pid), f"{name}, with {key}, is ended", HUNG_S)
    finally:
        fleet.switch(name, key).unlink()


def stall(fleet: Fleet, name: str) -> None:
    """Requests run, no token comes, /health says 200."""
    _switched("stall", fleet, name)


def refuse(fleet: Fleet, name: str) -> None:
    """Every generation answers 500, /health says 200."""
    _switched("refuse", fleet, name)


def start_slowly(fleet: Fleet, name: str) -> None:
    """It is killed, and the next one opens its port only after a while."""
    before = fleet.pids()[f"{name}#0"]
    fleet.switch(name, "start").touch()
    try:
        end_group([before.engine])

        def waits() -> bool:
            record = fleet.record(f"{name}#0", f"{before.launch}/launch.json")
            return record.get("state") == "starting" and "nothing listens" in record.get("message", "")

        wait_until(waits, f"{name} is waited for")
    finally:
        fleet.switch(name, "start").unlink()


def fill_disk(fleet: Fleet, name: str) -> None:
    """The disk of logs and records is full when an engine is killed; it must serve again while it is."""
    before = fleet.pids()[f"{name}#0"]
    known = len(fleet.events())
    filler = fleet.home / "run" / "filler"
    _fill(filler)
    try:
        end_group([before.engine])
        wait_until(lambda: _serves_again(fleet, name, before.engine), f"{name} serves on a full disk")
        wait_until(
            lambda: any("output is lost" in event["message"] for event in fleet.events()[known:]),
            "the lost output is told",
        )
    finally:
        filler.unlink()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def _serves_again(fleet: Fleet, name: str, before: int) -> bool:
    try:
        found = fleet.launches().get(f"{name}#0", [])
        return bool(found) and found[0].engine != before and bool(ask(fleet.entries[name]["port"], "/argv"))
    except OSError:
        return False


def step_clock(fleet: Fleet, name: str) -> None:
    """The wall clock is set for all of sage; then an engine is killed."""
    fleet.clock.step()
    kill_engine(fleet, name)


def edit(fleet: Fleet, name: str) -> None:
    fleet.edit(name)


KINDS = {
    "kill -9 of the engine": Kind(kill_engine, ("killed by signal 9",)),
    "kill -9 of a worker process": Kind(kill_worker, ("exited with code 1",), needs_worker=True),
    "kill -9 of the supervisor": Kind(kill_supervisor, ("its supervisor ended without a word",)),
    "kill -9 of supervisor and engine": Kind(kill_both, ("its supervisor ended without a word",)),
    "kill -9 of watcher and supervisor": Kind(kill_watcher, ("the watcher before this one", "killed"), ""),
    "kill -9 of a gateway worker": Kind(kill_gateway_worker, ("ended", "another one starts"), "gateway"),
    "hang: SIGSTOP": Kind(freeze, ("no answer",)),
    "hang: no token, health 200": Kind(stall, ("no answer",)),
    "lying health: 500, health 200": Kind(refuse, ("answered 500",)),
    "slow start": Kind(start_slowly, ("killed by signal 9",)),
    "full log disk": Kind(fill_disk, ("output is lost",), "", needs_disk=True),
    "clock step, then kill -9": Kind(step_clock, ("killed by signal 9",), needs_clock=True),
    "changed spec": Kind(edit, ("env.EDIT",)),
}
