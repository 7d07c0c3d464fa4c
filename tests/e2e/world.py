"""The `sage` command as a real process, in a folder and a SAGE_HOME of the test's own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import Process, end_all, free_port, is_alive, marked
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
FAKE_ENGINE = REPOSITORY / "tests" / "fake_engine.py"
SAGE = (sys.executable, "-m", "sage_reconcile.cli.main")
TIMEOUT = 120.0

# What of the tests' own environment reaches sage: nothing that could change what it does.
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "COVERAGE_PROCESS_START")


def engine(name: str, *options: str, port: int | None = 0, **fields: Any) -> dict[str, Any]:
    """An entry of `engines` that runs the fake engine with these options, on the CPU.

    `port` is pinned to a free one: tests run side by side, and automatic ports are the host's. None leaves
    it to sage; only tests with the fixture `automatic_ports` may do that.
    """
    command = [sys.executable, str(FAKE_ENGINE), "--port", "{port}", "--model", "{model}", *options]
    entry = {
        "name": name,
        "model": f"model-{name}",
        "runtime": "command",
        "command": command,
        "use_gpu": False,
    }
    if port is not None:
        entry["port"] = port or free_port(fields.get("replicas", 1))
    return entry | fields


def stack_text(engines: Iterable[Mapping[str, Any]], name: str = "demo", **top: Any) -> str:
    """A stack file, one engine a line."""
    lines = ["version: 1", f"name: {name}"]
    lines += [f"{key}: {json.dumps(value)}" for key, value in top.items()]
    entries = [f"  - {json.dumps(one)}" for one in engines]
    return "\n".join([*lines, "engines:" if entries else "engines: []", *entries]) + "\n"


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    rc: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    def json(self) -> Any:
        return json.loads(self.out)

    def ok(self) -> "Result":
        """Itself, when the exit status is 0."""
        assert self.rc == 0, f"exit status {self.rc}\n{self.text}"
        return self

    def failed(self, rc: int = 1) -> "Result":
        """Itself, when the exit status is `rc`."""
        assert self.rc == rc, f"exit status {self.rc}, not {rc}\n{self.text}"
        return self


def is_tidy(text: str) -> bool:
    """Whether an output shows neither a traceback nor a fault of sage itself."""
    return "Traceback" not in text and "a fault of sage" not in text


class Running:
    """A `sage` command that goes on. Its output is collected line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def says(self, *words: str, after: int = 0) -> int:
        """Waits until a line from number `after` on holds all the words; the number of the line after it."""

        def found() -> int:
            numbered = enumerate(self.lines[after:], after + 1)
            return next((number for number, line in numbered if all(word in line for word in words)), 0)

        try:
            return wait_until(found, f"the output says {' '.join(words)!r}")
        except BaseException:
            print(self.text)
            raise

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = TIMEOUT) -> Result:
        """Waits for its end."""
        rc = self.process.wait(timeout)
        self._reader.join(timeout)
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert is_tidy(self.text), self.text
        return Result(rc, self.text, "")

    def put_down(self) -> None:
        """For tidying up: ended, however far it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(frozen=True)
class Pids:
    """The processes of one launch."""

    supervisor: int
    engine: int
    launch: str


class World:
    """A folder with stack files and a SAGE_HOME, and everything that sage runs for it."""

    sage: tuple[str, ...] = SAGE

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.home = home
        self.environ = {name: os.environ[name] for name in KEPT if name in os.environ}
        # A wide terminal, so that no table folds; no GPU of this host is any business of these tests.
        self.environ |= {"SAGE_HOME": str(home), "COLUMNS": "250", "SAGE_DISABLE_NVML": "1"}
        self.environ |= {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        self._running: list[Running] = []
        folder.mkdir(exist_ok=True)

    # ---- stack files

    def write(self, *engines: Mapping[str, Any], file: str = "sage.yaml", **top: Any) -> Path:
        """Writes a stack file as editors do: beside it, then renamed over it."""
        return self.write_text(stack_text(engines, **top), file)

    def write_text(self, text: str, file: str = "sage.yaml") -> Path:
        path = self.folder / file
        part = path.with_suffix(".part")
        part.write_text(text)
        part.replace(path)
        return path

    # ---- the command

    def __call__(self, *arguments: str | Path, input: str | None = None, **environ: str) -> Result:
        """Runs `sage ARGUMENTS` to its end, without a terminal."""
        done = subprocess.run(
            [*self.sage, *map(str, arguments)],
            cwd=self.folder,
            env=self.environ | environ,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        result = Result(done.returncode, done.stdout, done.stderr)
        assert is_tidy(result.text), f"sage {' '.join(map(str, arguments))}\n{result.text}"
        return result

    def start(self, *arguments: str | Path, stdin: int = subprocess.DEVNULL, **environ: str) -> Running:
        """Starts `sage ARGUMENTS`, which goes on; it is ended with the test."""
        process = subprocess.Popen(
            [*self.sage, *map(str, arguments)],
            cwd=self.folder,
            env=self.environ | environ,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._running.append(Running(process))
        return self._running[-1]

    def apply(self, *arguments: str | Path) -> Result:
        """`sage apply --yes`, which must go well."""
        return self("apply", "--yes", *arguments).ok()

    def plan(self, *arguments: str | Path) -> dict[str, Any]:
        """`sage plan --format json`, whatever its exit status."""
        plan: dict[str, Any] = self("plan", "--format", "json", *arguments).json()
        return plan

    def actions(self, *arguments: str | Path) -> dict[str, str]:
        """What the plan would do, by replica."""
        steps = self.plan(*arguments)["steps"]
        return {f"{step['engine']}#{step['replica']}": step["action"] for step in steps}

    def is_settled(self) -> None:
        """Planning after a complete apply is empty."""
        result = self("plan", "--detailed-exitcode").ok()
        assert "No changes" in result.out

    # ---- what runs

    def launches(self, stack: str = "demo") -> dict[str, list[Pids]]:
        """The launches of a stack by replica ("chat#0"): those whose supervisor and engine are there."""
        processes = [p for p in marked(str(self.home)) if p.mark.get("home") == str(self.home)]
        found: dict[str, list[Pids]] = {}
        for one in processes:
            replica = one.mark["replica"]
            assert isinstance(replica, dict)
            if replica["stack"] != stack or not _is_supervisor(one):
                continue
            engines = [p.pid for p in processes if p.parent == one.pid and _is_engine(p)]
            if engines:
                name = f"{replica['engine']}#{replica['replica']}"
                found.setdefault(name, []).append(Pids(one.pid, min(engines), str(one.mark["launch"])))
        return found

    def pids(self, stack: str = "demo") -> dict[str, Pids]:
        """The processes of every replica; fails when one has two launches."""
        launches = self.launches(stack)
        doubled = [name for name, found in launches.items() if len(found) > 1]
        assert not doubled, f"more than one launch: {doubled}"
        return {name: found[0] for name, found in launches.items()}

    def record(self, replica: str, file: str = "*/launch.json", stack: str = "demo") -> dict[str, Any]:
        """A record of the replica, the newest of several, {} while there is none."""
        folder = self.home / "run" / stack / replica.replace("#", ".")
        with contextlib.suppress(OSError, ValueError):
            paths = sorted(folder.glob(file), key=lambda path: path.stat().st_mtime)
            record: dict[str, Any] = json.loads(paths[-1].read_bytes()) if paths else {}
            return record
        return {}

    def until_ready(self, *replicas: str, stack: str = "demo") -> dict[str, Pids]:
        """Waits until these replicas, and nothing else, run and are ready; their processes."""

        def are_ready() -> dict[str, Pids]:
            found = self.launches(stack)
            states = {
                name: self.record(name, f"{pids[0].launch}/launch.json", stack).get("state")
                for name, pids in found.items()
            }
            alone = all(len(pids) == 1 for pids in found.values())
            is_done = found.keys() == set(replicas) and alone and set(states.values()) <= {"ready"}
            return {name: pids[0] for name, pids in found.items()} if is_done else {}

        return wait_until(are_ready, f"{', '.join(replicas)} ready")

    def until_none(self) -> None:
        """Waits until no process of this SAGE_HOME is left."""
        wait_until(lambda: not marked(str(self.home)), "every process of this SAGE_HOME ends")

    def tidy(self) -> None:
        """Ends commands that go on, then every launch: SIGTERM to its supervisor is promised to be enough."""
        for running in self._running:
            running.put_down()
        for _ in range(2):
            for process in marked(str(self.home)):
                if _is_supervisor(process):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.05)
        wait_until(
            lambda: not any(map(_is_supervisor, marked(str(self.home)))), "the supervisors leave", 20.0
        )


def _is_supervisor(process: Process) -> bool:
    # A child that it has forked and that is not yet another program looks the same, but for its session.
    return process.environ.get("SAGE_ROLE") == "supervisor" and process.session == process.pid


def _is_engine(process: Process) -> bool:
    return "SAGE_ROLE" not in process.environ


def ask(port: int, path: str) -> Any:
    """GET from an engine, as JSON."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT) as reply:
        return json.loads(reply.read())


def kill(*pids: int) -> None:
    """SIGKILL, and waits until they are gone."""
    end_all(list(pids))
    wait_until(lambda: not any(map(is_alive, pids)), f"processes {pids} are gone")
