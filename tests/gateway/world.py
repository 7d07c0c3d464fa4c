"""Engines and gateways as real processes, and an engine in this process that a test can steer."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self, TypeVar

import httpx

from sage_reconcile.model import codec
from sage_reconcile.model.routing import Backend, Route, RoutingTable

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 30.0
T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], T], what: str) -> T:
    """The first true value of `condition`; fails with `what` when the deadline is over."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return value


def backend(
    url: str, name: str = "e#0", state: str = "ready", model: str = "fake", **more: object
) -> Backend:
    """A backend with the id `s/<name>@f:1`."""
    engine, _, replica = name.partition("#")
    given = {"kind": "llm", **more}
    return Backend(f"s/{name}@f:1", "s", engine, int(replica), url, model, state=state, **given)  # type: ignore[arg-type]


def table(routes: dict[str, list[Backend]], hold: float = 0.0) -> RoutingTable:
    """A routing table of these names; every backend once."""
    every = {known.id: known for backends in routes.values() for known in backends}
    made = [
        Route(name, "llm", tuple(sorted(known.id for known in backends)), hold=hold)
        for name, backends in sorted(routes.items())
    ]
    return RoutingTable(tuple(made), tuple(every[key] for key in sorted(every)))


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


class Process:
    """A child process that ends with the block."""

    def __init__(
        self, command: list[str], environ: dict[str, str] | None = None, inherits: tuple[int, ...] = ()
    ) -> None:
        self.process = subprocess.Popen(
            command,
            pass_fds=inherits,
            cwd=REPOSITORY,
            env={**os.environ, **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __exit__(self, *_: object) -> None:
        self.end()


class FakeEngine(Process):
    """tests/fake_engine.py on a free port, listening."""

    def __init__(self, *options: str, port: int | None = None, model: str = "fake") -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        place = ["--port", str(self.port), "--model", model]
        super().__init__([sys.executable, str(REPOSITORY / "tests" / "fake_engine.py"), *place, *options])

    def __enter__(self) -> Self:
        wait_for(self._listens, "the fake engine listens")
        return self

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.output
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def running(self) -> int:
        """Requests that it works on now."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        return int(text.split("vllm:num_requests_running ")[1].split()[0])


class Gateway(Process):
    """`python -m gateway` on a free port, answering /health."""

    def __init__(self, home: Path, *options: str, environ: dict[str, str] | None = None) -> None:
        self.home = home
        self.port = free_port()
        command = [sys.executable, "-m", "gateway", "--home", str(home), "--port", str(self.port), *options]
        super().__init__(command, environ)
        self._connect()

    def _connect(self) -> None:
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=DEADLINE_S)

    def __enter__(self) -> Self:
        wait_for(self._answers, "the gateway answers /health")
        return self

    def end(self) -> None:
        self.client.close()
        super().end()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.output
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def write(self, data: bytes) -> str:
        """Replaces the routing file as it is published, atomically; its digest."""
        path = self.home / "routing" / "routing.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".new")
        partial.write_bytes(data)
        partial.replace(path)
        return digest_of(data)

    def serve(self, routes: dict[str, list[Backend]], hold: float = 0.0) -> str:
        """Publishes a table and waits until it is served by; its digest."""
        digest = self.write(codec.encode(table(routes, hold)))
        wait_for(lambda: self.table()["digest"] == digest, "the gateway serves by the new table")
        return digest

    def table(self) -> dict[str, str | None]:
        told: dict[str, str | None] = self.client.get("/ready").json()["table"]
        return told

    def chat(self, model: str = "fake", **more: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        return self.client.post("/v1/chat/completions", json=body)


@dataclass
class Recorded:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Script:
    """How the recording engine answers. `chunks` are written one by one; None waits for `go_on`."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    chunks: Iterable[bytes | None] = (b"{}",)
    wait_for_client_to_leave: bool = False


class RecordingEngine:
    """An engine in this process: records what arrives byte for byte, answers by a script."""

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.script = Script()
        self.go_on = threading.Event()
        self.asked = threading.Event()
        self.left = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                engine.requests.append(Recorded(self.path, dict(self.headers), body))
                engine.asked.set()
                if engine.script.wait_for_client_to_leave:
                    self.connection.settimeout(DEADLINE_S)
                    if self.connection.recv(1) == b"":
                        engine.left.set()
                    self.close_connection = True
                    return
                self.send_response(engine.script.status)
                for name, value in engine.script.headers.items():
                    self.send_header(name, value)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for chunk in engine.script.chunks:
                    if chunk is None:
                        engine.go_on.wait(DEADLINE_S)
                    else:
                        self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")

        return Handler
