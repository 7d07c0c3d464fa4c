"""One turn of one target: started, warmed up, loaded in phases, ended; what was measured as plain values."""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.gateway import processes
from tests.bench.gateway.processes import BenchError, Process, ask, python_module, seconds_to_ok
from tests.bench.gateway.speed import Speed
from tests.bench.gateway.stream_load import PATH
from tests.bench.gateway.targets import HERE, Places, Target, command_of

PHASES = ("json", "single", "stream", "paced")
STREAM_EVENTS = 64
PACED_EVENTS = 100
Result = dict[str, Any]


@dataclass(frozen=True)
class Cores:
    """Who runs where: gateways from the first core on, load and upstreams on the last. () is anywhere."""

    usable: tuple[int, ...]

    @classmethod
    def of_this_machine(cls) -> "Cores":
        usable = tuple(sorted(os.sched_getaffinity(0)))
        return cls(usable if len(usable) > 1 and shutil.which("taskset") else ())

    def gateway(self, count: int) -> tuple[int, ...]:
        return self.usable[:count]

    @property
    def load(self) -> tuple[int, ...]:
        return self.usable[-1:]


class Bench:
    """Measures targets by the options of `__main__`; writes only below `folder`."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.cores = Cores.of_this_machine()
        self.speed = Speed(self.cores.gateway(1))
        self.speed.start()
        self.headers = {"authorization": f"Bearer {options.key}"}
        self.bodies = {name: self._body(name, name == "stream") for name in ("json", "stream")}

    def _body(self, name: str, is_stream: bool) -> Path:
        content = "x" * self.options.prompt_bytes
        body = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": content}],
            "stream": is_stream,
        }
        path = self.folder / f"{name}.body"
        path.write_text(json.dumps(body))
        return path

    def turn(self, target: Target) -> Result:
        """Raises BenchError if it does not start, answers wrongly or without asking the upstream."""
        folder = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=self.folder))
        folder.chmod(0o755)  # nginx's worker is another user
        try:
            with contextlib.ExitStack() as stack:
                return self._measure(target, folder, stack)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _measure(self, target: Target, folder: Path, stack: contextlib.ExitStack) -> Result:
        options = self.options
        started = [self._upstream(folder, number, stack) for number in range(options.upstreams)]
        upstreams = tuple(port for _, port in started)
        process, port = started[0]
        result: Result = {}
        if target.cmd:
            places = Places(
                processes.free_port(), processes.free_port(), upstreams, folder, options.model, options.key
            )
            process, port = stack.enter_context(self._start(target, places)), places.port
            body = self.bodies["json"].read_bytes()
            result["ready_s"] = seconds_to_ok(process, lambda: ask(port, target.ready, None, self.headers))
            result["first_200_s"] = seconds_to_ok(process, lambda: ask(port, PATH, body, self.headers))
        for name in ("json", "stream") if options.warmup else ():
            self._wrk(port, name, options.connections, options.warmup)
        for phase in options.phases:
            if target.cmd:
                self.speed.settle(options.settle)
            with self.speed.watch() as samples:
                result[phase] = self._phase(phase, process, port, upstreams)
            result[phase]["work_s"] = statistics.mean(samples)
        result["rss_mib"], result["worker_rss_mib"] = processes.peak_rss_mib(process.pid)
        return result

    def _upstream(self, folder: Path, number: int, stack: contextlib.ExitStack) -> tuple[Process, int]:
        port = processes.free_port()
        arguments = ["--port", str(port), "--chunks", str(STREAM_EVENTS), "--burst", str(self.options.burst)]
        log = folder / f"upstream{number}.log"
        upstream = Process(python_module("mock_upstream", *arguments), log, self.cores.load)
        stack.enter_context(upstream)
        seconds_to_ok(upstream, lambda: ask(port, "/health"))
        return upstream, port

    def _start(self, target: Target, places: Places) -> Process:
        for name, text in target.files.items():
            (places.folder / name).write_text(places.fill(text))
        env = {**os.environ, **{name: places.fill(value) for name, value in target.env.items()}}
        log = places.folder / "log"
        return Process(command_of(target, places), log, self.cores.gateway(target.cores), env)

    def _phase(self, name: str, process: Process, port: int, upstreams: Sequence[int]) -> Result:
        """Raises BenchError if the gateway answered requests that the upstream did not see."""
        options = self.options
        self._stats(upstreams, is_reset=True)
        cpu, began = processes.cpu_seconds(process.pid), time.monotonic()
        if name == "paced":
            found = self._paced(port)
        elif name == "single":
            found = self._wrk(port, "json", 1, options.seconds / 2)
        else:
            found = self._wrk(port, name, options.connections, options.seconds)
        cpu = processes.cpu_seconds(process.pid) - cpu
        found["core_use"] = cpu / (time.monotonic() - began)
        process.check()
        stats = self._stats(upstreams)
        count = stats["chunks"] if name == "paced" else found["requests"]
        if name == "stream":
            count *= STREAM_EVENTS
        found["cpu_us_raw"] = cpu * 1e6 / max(1, count)
        if name != "paced":
            found["per_s"] = found["requests"] / found["seconds"]
            if stats["requests"] < found["requests"]:
                asked = f"{stats['requests']} requests at the upstream"
                raise BenchError(f"{name}: {found['requests']} answers, but only {asked}")
        return found

    def _stats(self, upstreams: Sequence[int], is_reset: bool = False) -> dict[str, int]:
        total: dict[str, int] = {}
        for port in upstreams:
            _, body = ask(port, "/stats?reset=1" if is_reset else "/stats")
            for name, value in json.loads(body).items():
                total[name] = total.get(name, 0) + value
        return total

    def _load(self, command: Sequence[str], limit: float) -> str:
        """Runs a load generator on its core; what it printed. Raises BenchError if it fails."""
        command = processes.pinned(command, self.cores.load)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, env=processes.environ()
        )
        if done.returncode:
            raise BenchError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _wrk(self, port: int, body: str, connections: int, seconds: float) -> Result:
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10"]
        command += [
            "-s",
            str(HERE / "wrk.lua"),
            f"http://127.0.0.1:{port}{PATH}",
            "--",
            str(self.bodies[body]),
        ]
        for pair in self.headers.items():
            command += pair
        printed = self._load(command, seconds + 60)
        for line in printed.splitlines():
            if line.startswith("RESULT "):
                found: Result = json.loads(line.removeprefix("RESULT "))
                return found
        raise BenchError(f"wrk printed no result:\n{printed}")

    def _paced(self, port: int) -> Result:
        options = self.options
        arguments = ["--port", str(port), "--streams", str(options.streams), "--chunks", str(PACED_EVENTS)]
        arguments += ["--delay-ms", str(options.delay_ms), "--seconds", str(options.seconds)]
        arguments += ["--prompt-bytes", str(options.prompt_bytes), "--model", options.model]
        for name, value in self.headers.items():
            arguments += ["--header", f"{name}: {value}"]
        command = python_module("stream_load", *arguments)
        found: Result = json.loads(self._load(command, options.seconds + 60))
        return found
