"""Many paced streams at once, and how much later their events arrive.

Each connection asks for one stream after another, for the given time. Printed, as JSON:

    ttft_ms     from the request to the first byte of the first event
    gap_ms      between two events of a stream as they arrive
    transit_ms  from the moment the upstream wrote an event to its arrival; the upstream puts the time into
                the text of paced events (mock_upstream.py)

The pacing is asked for in the prompt, which every gateway passes on.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Sequence
from time import monotonic_ns
from typing import cast

import uvloop

from tests.bench.gateway.sage_target import MODEL

PATH = "/v1/chat/completions"
_TIME = re.compile(rb"t=(\d{19})")
_DONE = b"data: [DONE]"
_END = b"0\r\n\r\n"
_MAX_ERRORS = 3


def summary(values: list[int]) -> dict[str, float]:
    """p50, p99 and the maximum, in milliseconds, of nanoseconds; nothing of nothing."""
    values = sorted(values)
    if not values:
        return {}
    last = len(values) - 1
    found = {"p50": values[last // 2], "p99": values[int(last * 0.99)], "max": values[last]}
    return {name: round(value / 1e6, 3) for name, value in found.items()}


class Results:
    """What arrived since the last `clear`; times in nanoseconds."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.clear()

    def clear(self) -> None:
        self.ttft: list[int] = []
        self.gaps: list[int] = []
        self.transit: list[int] = []
        self.events = 0
        self.streams = 0

    def told(self, seconds: float) -> dict[str, object]:
        return {
            "completed": self.streams,
            "events": self.events,
            "events_per_s": round(self.events / seconds, 1),
            "seconds": round(seconds, 3),
            "ttft_ms": summary(self.ttft),
            "gap_ms": summary(self.gaps),
            "transit_ms": summary(self.transit),
        }


class Stream(asyncio.Protocol):
    """One connection that asks for streams until told to stop."""

    transport: asyncio.Transport

    def __init__(self, request: bytes, results: Results, running: asyncio.Event) -> None:
        self.request = request
        self.results = results
        self.running = running
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_active = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def start(self) -> None:
        self.is_active = self.is_head = self.is_first = True
        self.is_done = False
        self.tail = b""
        self.sent = self.last = monotonic_ns()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = monotonic_ns()
        if self.is_head and not data.startswith(b"HTTP/1.1 200"):
            self.results.errors.append(data[:200].decode(errors="replace"))
            self.transport.close()
            return
        self.is_head = False
        data = self.tail + data
        cut = data.rfind(b"\n\n") + 2  # the end of the last whole event
        whole, self.tail = (data[:cut], data[cut:]) if cut > 1 else (b"", data)
        if whole:
            self.arrived(whole, now)
        if self.is_done and self.tail.endswith(_END):
            self.complete()

    def arrived(self, whole: bytes, now: int) -> None:
        """Counts whole events that arrived together."""
        results = self.results
        count = whole.count(b"\n\n")
        if _DONE in whole[-40:]:
            self.is_done = True
            count -= 1
        results.events += count
        if self.is_first:
            results.ttft.append(now - self.sent)
        elif count:
            results.gaps.append(now - self.last)
        results.gaps.extend([0] * (count - 1))
        self.is_first = False
        self.last = now
        results.transit.extend(now - int(found) for found in _TIME.findall(whole))

    def complete(self) -> None:
        self.is_active = False
        self.results.streams += 1
        if self.running.is_set():
            self.start()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_active and self.is_done:  # the body ended with the connection
            self.results.streams += 1
        elif self.is_active and not self.results.errors:
            self.results.errors.append(f"connection lost in a stream: {exc!r}")
        if not self.closed.done():
            self.closed.set_result(None)


async def _ask(port: int, request: bytes, results: Results, running: asyncio.Event, wait: float) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(wait)
    while running.is_set() and not results.errors:
        _, stream = await loop.create_connection(lambda: Stream(request, results, running), "127.0.0.1", port)
        stream.start()
        await stream.closed


def request_of(options: argparse.Namespace) -> bytes:
    """The request, to the byte; `options` as `main` parses them."""
    pace = f"[mock chunks={options.chunks},delay={options.delay_ms:g}]"
    prompt = pace + "x" * (options.prompt_bytes - len(pace))
    messages = [{"role": "user", "content": prompt}]
    body = json.dumps({"model": options.model, "messages": messages, "stream": True}).encode()
    lines = [
        f"POST {PATH} HTTP/1.1",
        f"host: 127.0.0.1:{options.port}",
        "content-type: application/json",
        "accept: text/event-stream",
        *options.header,
        f"content-length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def load(options: argparse.Namespace) -> dict[str, object]:
    request = request_of(options)
    results = Results()
    running = asyncio.Event()
    running.set()
    # Spread over the length of one stream, so that starts, events and ends are spread evenly.
    spread = options.chunks * options.delay_ms / 1000
    waits = [spread * number / options.streams for number in range(options.streams)]
    tasks = [asyncio.create_task(_ask(options.port, request, results, running, wait)) for wait in waits]
    await asyncio.sleep(spread)
    results.clear()  # everything before the last stream has started is ramp-up
    begin = monotonic_ns()
    await asyncio.sleep(options.seconds)
    told = results.told((monotonic_ns() - begin) / 1e9)
    running.clear()
    _, late = await asyncio.wait(tasks, timeout=spread + 2)
    for task in late:
        task.cancel()
    return {**told, "streams": options.streams, "late": len(late), "errors": results.errors[:_MAX_ERRORS]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=100, help="events in a stream")
    parser.add_argument("--delay-ms", type=float, default=20, help="between two events")
    parser.add_argument("--seconds", type=float, default=6, help="after the ramp-up")
    parser.add_argument("--prompt-bytes", type=int, default=1000)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--header", action="append", default=[], help="a further header line")
    options = parser.parse_args(arguments)
    print(json.dumps(uvloop.run(load(options))))


if __name__ == "__main__":
    main()
