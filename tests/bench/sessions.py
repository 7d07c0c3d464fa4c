"""`make bench-sessions`: what a turn of a session costs, beside the same request without one.

A gateway with one worker, an engine in a process of its own that answers at once, and clients that each have
one turn after another in sessions of their own, in an order that hits no session twice in a row.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
import uvloop

from sage_reconcile.version import __version__
from tests.gateway.world import Gateway, backend, free_port

ANSWER = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 40}}]}
).encode()
REPLY = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
)
QUESTION = "What of it? " * 8


class Null(asyncio.Protocol):
    """An engine that answers whatever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._missing = 0

    def data_received(self, data: bytes) -> None:
        if self._missing <= 0:
            head, _, body = data.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or b"0")
            self._missing = length - len(body)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._transport.write(REPLY)  # type: ignore[attr-defined]


def engine(port: int) -> None:
    """Serves until it is ended."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Null, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(serve())


async def post(port: int, bodies: Sequence[bytes], times: list[float]) -> None:
    """Asks one after another over one connection; appends how long each took, in milliseconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n"
    for body in bodies:
        began = time.perf_counter()
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        got = await reader.readuntil(b"\r\n\r\n")
        if not got.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"error: the gateway refused a turn: {got!r}")
        await reader.readexactly(int(got.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
        times.append((time.perf_counter() - began) * 1000)
    writer.close()


async def ask_all(port: int, bodies: list[bytes], clients: int) -> list[float]:
    times: list[float] = []
    await asyncio.gather(*(post(port, bodies[at::clients], times) for at in range(clients)))
    return sorted(times)


def body(session: str = "") -> bytes:
    named = {"session_id": session} if session else {}
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": QUESTION}], **named}).encode()


def make_sessions(gateway: Gateway, count: int) -> list[str]:
    return [gateway.client.post("/sessions", json={}).json()["id"] for _ in range(count)]


def resident(gateway: Gateway) -> float:
    """MiB of the worker."""
    [worker] = psutil.Process(gateway.process.pid).children()
    return float(worker.memory_info().rss) / (1 << 20)


def cpu_s(gateway: Gateway) -> float:
    """CPU time of the worker so far."""
    [worker] = psutil.Process(gateway.process.pid).children()
    return sum(worker.cpu_times()[:2])


def rows(name: str, times: list[float]) -> str:
    middle, high = times[len(times) // 2], times[int(len(times) * 0.99)]
    return f"| {name} | {len(times):,} | {middle:.2f} | {high:.2f} | {times[-1]:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="what a turn of a session costs")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=2)
    given = parser.parse_args()
    port = free_port()
    null = multiprocessing.get_context("spawn").Process(target=engine, args=(port,), daemon=True)
    null.start()
    with tempfile.TemporaryDirectory() as folder, Gateway(Path(folder)) as gateway:
        gateway.serve({"m": [backend(f"http://127.0.0.1:{port}", model="m")]})
        unused = resident(gateway)
        plain = uvloop.run(ask_all(gateway.port, [body()] * (given.turns // 10), given.clients))
        sessions = make_sessions(gateway, given.sessions)
        bodies: list[bytes] = []
        while len(bodies) < given.turns:
            random.Random(len(bodies)).shuffle(sessions)
            bodies += [body(session) for session in sessions]
        began, cpu = time.perf_counter(), cpu_s(gateway)
        turns = uvloop.run(ask_all(gateway.port, bodies[: given.turns], given.clients))
        seconds = time.perf_counter() - began
        used, cpu = resident(gateway), cpu_s(gateway) - cpu
        size = (Path(folder) / "sage.db").stat().st_size / (1 << 20)
    null.terminate()
    versions = f"sage {__version__}, SQLite {sqlite3.sqlite_version}, httpx {httpx.__version__}"
    print(f"{versions}; {given.clients} clients, {given.sessions:,} sessions")
    print(f"{len(turns) / seconds:.0f} turns/s, {cpu / len(turns) * 1000:.2f} ms of CPU a turn")
    print("| requests, ms | count | median | p99 | longest |\n|---|---:|---:|---:|---:|")
    print(rows("without a session", plain))
    print(rows("a turn of a session", turns))
    print(
        f"| overhead of a turn | | {turns[len(turns) // 2] - plain[len(plain) // 2]:.2f} "
        f"| {turns[int(len(turns) * 0.99)] - plain[int(len(plain) * 0.99)]:.2f} | |"
    )
    print(f"database {size:.1f} MiB; worker {unused:.0f} MiB before, {used:.0f} MiB after")


if __name__ == "__main__":
    main()
