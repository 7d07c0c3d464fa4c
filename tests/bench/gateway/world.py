"""The gateway with fake model servers behind it, as real processes that end with the block."""

import contextlib
from pathlib import Path
from typing import Self

from tests.bench.gateway import processes
from tests.bench.gateway.processes import Process, ask, python_module, seconds_to_ok

KEY = "sk-bench-0123456789abcdef"
HEADERS = {"authorization": f"Bearer {KEY}"}
START_S = 60.0


class World:
    """`upstreams` fake model servers and one gateway with `workers`; logs and SAGE_HOME below `folder`."""

    def __init__(self, folder: Path, upstreams: int, workers: int = 1) -> None:
        self.folder = folder
        self.ports = [processes.free_port() for _ in range(upstreams)]
        self.upstreams: dict[int, Process] = {}
        self.port = processes.free_port()
        self._workers = workers
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._stop_upstreams)
            for number in range(len(self.ports)):
                self.start_upstream(number)
            arguments = ["--home", str(self.folder / "home"), "--port", str(self.port)]
            arguments += ["--workers", str(self._workers)]
            arguments += [f"http://127.0.0.1:{port}" for port in self.ports]
            command = python_module("sage_target", *arguments)
            log = self.folder / "gateway.log"
            self.gateway = stack.enter_context(
                Process(command, log, env={**processes.environ(), "SAGE_API_KEYS": KEY})
            )
            seconds_to_ok(self.gateway, lambda: ask(self.port, "/v1/models", None, HEADERS), START_S)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _stop_upstreams(self) -> None:
        for upstream in self.upstreams.values():
            upstream.stop()

    def start_upstream(self, number: int) -> None:
        """Starts it, again where it had been killed, on the same port; returns when it answers."""
        port = self.ports[number]
        log = self.folder / f"upstream{number}.log"
        self.upstreams[number] = Process(python_module("mock_upstream", "--port", str(port)), log)
        seconds_to_ok(self.upstreams[number], lambda: ask(port, "/health"), START_S)

    def kill_upstream(self, number: int) -> None:
        self.upstreams[number].kill()
