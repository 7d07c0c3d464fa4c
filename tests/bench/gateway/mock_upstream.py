"""A very fast fake model server, the upstream of every target: raw protocol, every reply encoded beforehand.

    GET  /health, /healthz, /ping   200
    GET  /v1/models                 one model
    GET  /stats                     counters as JSON; `/stats?reset=1` sets them to 0 as well
    POST /v1/chat/completions       JSON, or server-sent events where the body has "stream": true
    POST /v1/completions            the same two
    POST /v1/embeddings             JSON

Streams come in chunked transfer encoding, one chunk with one event of about 220 bytes for each token. How a
stream is paced is asked for in the prompt, which every gateway passes on:
"[mock chunks=64,delay=20,ttft=100]" (events, milliseconds, milliseconds); the options are its defaults.

Without a delay, `--burst` events go into one write, so that a gateway's reads see many at once. With one,
each event is a write of its own, as a model server's is, and its text begins with "t=" and the time it was
written (nanoseconds of CLOCK_MONOTONIC, 19 digits). With `id=N` the stream has a content that no other id
has, and the same at every time.
"""

import argparse
import asyncio
import json
import re
import signal
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import monotonic_ns
from typing import cast

import httptools
import uvloop

from tests.bench.gateway import mock_replies as replies

_STREAM = re.compile(rb'"stream"\s*:\s*true')
_PACE = re.compile(rb"\[mock ([^\]]*)\]")
_EMPTY_OK = frozenset({b"/health", b"/healthz", b"/ping", b"/", b"/health_generate"})
_INFO = frozenset({b"/get_server_info", b"/server_info", b"/get_model_info", b"/model_info"})


@dataclass
class Pace:
    """How streams are sent; `delay` and `ttft` in milliseconds."""

    chunks: float = 64
    delay: float = 0.0
    ttft: float = 0.0
    id: float = -1


@dataclass
class Counters:
    connections: int = 0
    requests: int = 0
    streams: int = 0
    chunks: int = 0
    aborted: int = 0


class Server:
    """What the connections share."""

    def __init__(self, pace: Pace, burst: int) -> None:
        self.pace = pace
        self.burst = burst
        self.counters = Counters()

    def stats(self, is_reset: bool) -> bytes:
        told = replies.response(json.dumps(asdict(self.counters)).encode())
        if is_reset:
            self.counters = Counters()
        return told

    def pace_of(self, body: bytes) -> Pace:
        if b"[mock " not in body or not (found := _PACE.search(body)):
            return self.pace
        pairs = (item.partition("=") for item in found[1].decode().split(","))
        return Pace(**{**asdict(self.pace), **{name: float(value) for name, _, value in pairs}})


class Upstream(asyncio.Protocol):
    """One connection; a pipelined request waits for the reply before it."""

    transport: asyncio.Transport
    url: bytes
    body: bytes

    def __init__(self, server: Server) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.loop = asyncio.get_running_loop()
        self.queue: list[tuple[bytes, bytes]] = []
        self.is_busy = False
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.counters.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.server.counters.aborted += 1

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.parts: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self.parts)
        if self.is_busy:
            self.queue.append((self.url, body))
        else:
            self.answer(self.url, body)

    def answer(self, url: bytes, body: bytes) -> None:
        path, _, query = url.partition(b"?")
        is_chat = path == b"/v1/chat/completions"
        if is_chat or path == b"/v1/completions":
            self.complete(is_chat, body)
        elif path == b"/v1/embeddings":
            self.server.counters.requests += 1
            self.transport.write(replies.EMBEDDING)
        elif path == b"/v1/models":
            self.transport.write(replies.MODELS)
        elif path in _EMPTY_OK:
            self.transport.write(replies.HEALTH)
        elif path == b"/stats":
            self.transport.write(self.server.stats(b"reset" in query))
        elif path in _INFO:
            self.transport.write(replies.SERVER_INFO)
        else:
            self.transport.write(replies.NOT_FOUND)

    def complete(self, is_chat: bool, body: bytes) -> None:
        self.server.counters.requests += 1
        pace = self.server.pace_of(body)
        at = body.find(b'"stream"')
        if at >= 0 and _STREAM.match(body, at):
            self.start_stream(is_chat, pace)
            return
        reply = replies.CHAT if is_chat else replies.COMPLETION
        if pace.ttft:
            self.is_busy = True
            self.timer = self.loop.call_later(pace.ttft / 1000, self.finish, reply)
        else:
            self.transport.write(reply)

    def finish(self, data: bytes) -> None:
        self.timer = None
        self.transport.write(data)
        self.next()

    def next(self) -> None:
        self.is_busy = False
        while self.queue and not self.is_busy:
            self.answer(*self.queue.pop(0))

    def start_stream(self, is_chat: bool, pace: Pace) -> None:
        events = max(2, int(pace.chunks))
        delay = pace.delay / 1000
        counters = self.server.counters
        counters.streams += 1
        counters.chunks += events
        self.is_busy = self.is_head_due = True
        at = self.loop.time() + pace.ttft / 1000
        if pace.id >= 0:
            parts = replies.own_parts(is_chat, events, int(pace.id))
            self.timer = self.loop.call_at(at, self.own, parts, at, delay)
        elif delay:
            end = replies.stream_parts(is_chat, events)[-1]
            around = replies.timed_event(is_chat)
            self.timer = self.loop.call_at(at, self.paced, events, end, around, at, delay)
        elif pace.ttft:
            bursts = replies.stream_bursts(is_chat, events, self.server.burst)
            self.timer = self.loop.call_at(at, self.burst, bursts)
        else:
            self.burst(replies.stream_bursts(is_chat, events, self.server.burst))

    def burst(self, bursts: tuple[bytes, ...]) -> None:
        self.timer = None
        write = self.transport.write
        for data in bursts:
            write(data)
        self.next()

    def write_event(self, data: bytes) -> None:
        if self.is_head_due:
            self.is_head_due = False
            data = replies.STREAM_HEAD + data
        self.transport.write(data)

    def paced(self, left: int, end: bytes, around: tuple[bytes, bytes], at: float, delay: float) -> None:
        self.timer = None
        if left == 1:
            self.transport.write(end)
            self.next()
            return
        self.write_event(b"%b%019d%b" % (around[0], monotonic_ns(), around[1]))
        at += delay  # reckoned from the start, so that a late wake-up does not add up
        self.timer = self.loop.call_at(at, self.paced, left - 1, end, around, at, delay)

    def own(self, parts: list[bytes], at: float, delay: float) -> None:
        self.timer = None
        self.write_event(parts.pop(0))
        if not parts:
            self.next()
            return
        at += delay
        self.timer = self.loop.call_at(at, self.own, parts, at, delay)


async def serve(port: int, shared: Server) -> None:
    loop = asyncio.get_running_loop()
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    server = await loop.create_server(lambda: Upstream(shared), sock=listening, backlog=4096)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--chunks", type=int, default=64, help="events in a stream")
    parser.add_argument("--delay-ms", type=float, default=0, help="between two events")
    parser.add_argument("--ttft-ms", type=float, default=0, help="before the first byte")
    parser.add_argument("--burst", type=int, default=64, help="events per write when the delay is 0")
    options = parser.parse_args(arguments)
    pace = Pace(options.chunks, options.delay_ms, options.ttft_ms)
    uvloop.run(serve(options.port, Server(pace, options.burst)))


if __name__ == "__main__":
    main()
