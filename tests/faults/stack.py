"""A stack of fake engines with a gateway and a watcher, and what shows that all of it is well."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from sage_reconcile.converge import survey
from sage_reconcile.gatewayd.processes import members
from sage_reconcile.home import Home
from sage_reconcile.observe.look import LocalEyes
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve
from tests.e2e.world import SAGE, Pids, Running, World, ask, engine
from tests.faults.clock import Clock
from tests.processes import Process, free_port, is_alive, marked
from tests.waiting import wait_until

# Quick, so that two hundred faults take minutes; what they are in proportion is as by default.
HEALTH = {"interval": "200ms", "timeout": "500ms", "failures": 2, "startup_timeout": "20s"}
# Each engine meets dozens of faults in a few minutes: none of them is a crash loop.
RESTART = {"max_attempts": 10000, "window": "1s", "backoff": "50ms", "backoff_max": "200ms"}
WORKERS = ("--children", "1", "--stubborn-children", "--dies-with-children")
SWITCHES = ("hang", "stall", "refuse", "start")
DISK = "16m"


class Fleet(World):
    """Engines e0, e1 ...; every other one has a worker process in a session of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(folder, folder / "home")
        self.port = free_port()
        self.names = [f"e{number}" for number in range(count)]
        self.edits = 0
        self.entries = {name: self._entry(number, name) for number, name in enumerate(self.names)}
        self.clock = Clock(folder)
        self.sage = (self.clock.python, *SAGE[1:])
        self.is_mounted = self._mount_runs()
        self.watcher: Running | None = None

    def _entry(self, number: int, name: str) -> dict[str, Any]:
        files = [word for key in SWITCHES for word in (f"--{key}-file", str(self.switch(name, key)))]
        workers = WORKERS if number % 2 else ()
        files += ["--request-delay", "0.05"]
        return engine(name, *files, *workers, health=HEALTH, restart=RESTART, rollout={"drain": "1s"})

    def _mount_runs(self) -> bool:
        """The logs on a small disk of their own, where this user may make one."""
        run = self.home / "run"
        run.mkdir(parents=True, mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", str(run)]
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0

    def switch(self, name: str, key: str) -> Path:
        """The file that, while it is there, makes the engine misbehave."""
        return self.folder / f"{name}.{key}"

    # ---- running

    def begin(self) -> None:
        self.save()
        self("gateway", "start", "--port", str(self.port), "--workers", "2").ok()
        self.watch()
        self.until_ready(*(f"{name}#0" for name in self.names))

    def save(self) -> None:
        self.write(*self.entries.values())

    def watch(self) -> None:
        self.watcher = self.start("watch", "sage.yaml", "--interval", "5")
        self.watcher.says("watching")

    def edit(self, name: str) -> None:
        """Another spec: the engine needs a new process."""
        self.edits += 1
        self.entries[name]["env"] = {"EDIT": str(self.edits)}
        self.save()

    def workers(self) -> list[int]:
        """The gateway's worker processes."""
        found = {process.pid for process in members(Home(self.home))}
        return sorted(pid for pid in found if os.path.exists(f"{self.home}/run/gateway/{pid}.json"))

    # ---- looking

    def events(self) -> list[dict[str, Any]]:
        """All of them, read from the file itself."""
        found = []
        for name in ("events.1.jsonl", "events.jsonl"):
            with contextlib.suppress(OSError):
                found += (self.home / name).read_text().splitlines()
        return [json.loads(line) for line in found]

    def trouble(self) -> str:
        """What is not yet as it should be, "" once all is: one launch of each engine, ready, answering,
        nothing else of ours alive, and a plan without steps."""
        launches = self.launches()
        for name in self.names:
            found = launches.get(f"{name}#0", [])
            if len(found) != 1:
                return f"{name} has {len(found)} launches"
            if fault := self._fault_of(name, found[0]):
                return fault
        known = {one.launch for found in launches.values() for one in found}
        ours = [process for process in marked(str(self.home)) if process.mark]
        strays = [process.pid for process in ours if process.mark.get("launch") not in known]
        if strays:
            return f"left over: {strays}"
        expected = sum(2 + (number % 2) for number in range(len(self.names)))
        if len(ours) != expected:
            return f"{len(ours)} processes, not {expected}"
        if len(self.workers()) != 2:
            return "the gateway has not two workers"
        return self._steps()

    def _fault_of(self, name: str, pids: Pids) -> str:
        record = self.record(f"{name}#0", f"{pids.launch}/launch.json")
        if record.get("state") != "ready" or (record.get("engine") or {}).get("pid") != pids.engine:
            return f"{name} is {record.get('state')}: {record.get('message')}"
        asked = self.entries[name].get("env", {}).get("EDIT")
        with contextlib.suppress(OSError):
            return (
                "" if ask(self.entries[name]["port"], "/env").get("EDIT") == asked else f"{name} is outdated"
            )
        return f"{name} does not answer"

    def _steps(self) -> str:
        desired = resolve(load([self.folder / "sage.yaml"], self.environ))
        eyes = LocalEyes(Home(self.home), environ=self.environ)
        plan = asyncio.run(survey(desired, eyes)).plan
        if plan.steps or plan.blocked or any(kept.verdict.name == "HOLD" for kept in plan.kept):
            return f"the plan is not empty: {[step.id for step in plan.steps]}"
        return ""

    def processes(self, name: str) -> tuple[Pids, list[Process]]:
        """The launch of an engine, and its worker processes."""
        pids = self.pids()[f"{name}#0"]
        every = [p for p in marked(pids.launch) if p.pid not in (pids.supervisor, pids.engine)]
        return pids, every

    # ---- the end

    def tidy(self) -> None:
        for key in SWITCHES:
            for name in self.names:
                self.switch(name, key).unlink(missing_ok=True)
        for process in members(Home(self.home)):
            process.kill()
        super().tidy()
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.home / "run")], check=True)


def end_group(pids: list[int]) -> None:
    """SIGKILL to all of them at one moment."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)), f"processes {pids} are gone")
