"""Many streams at once through one worker: none lost, none mixed up, each as the engine itself answers it.

Every stream has a content of its own, of events of many sizes. All are asked for at once and run until after
the last one has begun; then each is compared, byte for byte, with what a fake model server answers when it is
asked directly. Run as `python -m tests.bench.gateway.streams [--streams 1000]`; exits 1 if one differs.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from tests.bench.gateway.client import Connection, Reply, ReplyError, chat
from tests.bench.gateway.processes import end_on_sigterm, raise_file_limit
from tests.bench.gateway.world import HEADERS, World

REPLY_S = 120.0
# Connections of the direct questions: they only have to be answered, not at once.
DIRECT = 32
_WHOSE = re.compile(rb"s=(\d{8}) ")
_SHOWN = 5


@dataclass
class Tally:
    """What became of the streams. `open` counts those that have begun and not ended."""

    open: int = 0
    most_open: int = 0
    lost: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def begun(self) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.mixed or self.different)


def prompt_of(number: int, events: int, delay_ms: float) -> str:
    return f"[mock id={number},chunks={events},delay={delay_ms:g}]"


async def stream(port: int, prompt: str, tally: Tally | None = None) -> Reply:
    """One whole stream over a connection of its own. Raises ReplyError and OSError."""
    async with asyncio.timeout(REPLY_S), Connection(port, HEADERS) as connection:
        reply = await connection.ask(chat(prompt, is_stream=True))
        if not tally:
            return await connection.read(reply)
        await connection.read_some(reply)
        tally.begun()
        try:
            return await connection.read(reply)
        finally:
            tally.open -= 1


def compare(number: int, reply: Reply, direct: Reply, tally: Tally) -> None:
    """Counts a whole reply that is not what the engine itself answers."""
    others = set(map(int, _WHOSE.findall(reply.body))) - {number}
    if others:
        tally.mixed.append(f"stream {number} has events of {sorted(others)[:_SHOWN]}")
    elif (reply.status, bytes(reply.body)) != (direct.status, bytes(direct.body)):
        sizes = f"{len(reply.body)} bytes instead of {len(direct.body)}"
        tally.different.append(f"stream {number}: {reply.status} instead of {direct.status}, {sizes}")


async def through(port: int, options: argparse.Namespace, tally: Tally) -> dict[int, Reply]:
    """All streams at once; the replies that came whole, by number."""

    async def one(number: int) -> Reply | None:
        try:
            return await stream(port, prompt_of(number, options.events, options.delay_ms), tally)
        except (ReplyError, OSError, TimeoutError) as error:
            tally.lost.append(f"stream {number}: {error or type(error).__name__}")
            return None

    replies = await asyncio.gather(*(one(number) for number in range(options.streams)))
    return {number: reply for number, reply in enumerate(replies) if reply}


async def directly(port: int, options: argparse.Namespace) -> dict[int, Reply]:
    """The same streams from the fake model server itself, without delay."""
    gate = asyncio.Semaphore(DIRECT)

    async def one(number: int) -> Reply:
        async with gate:
            return await stream(port, prompt_of(number, options.events, 0))

    replies = await asyncio.gather(*(one(number) for number in range(options.streams)))
    return dict(enumerate(replies))


async def check(world: World, options: argparse.Namespace) -> Tally:
    tally = Tally()
    began = time.monotonic()
    replies = await through(world.port, options, tally)
    seconds = time.monotonic() - began
    world.gateway.check()
    for number, direct in (await directly(world.ports[0], options)).items():
        if number in replies:
            compare(number, replies[number], direct, tally)
    size = sum(len(reply.body) for reply in replies.values())
    print(
        f"{options.streams} streams of {options.events} events, {size:,} bytes, workers: {options.workers}, "
        f"{seconds:.1f} s; at most {tally.most_open} open at once"
    )
    return tally


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--events", type=int, default=40, help="of a stream")
    parser.add_argument("--delay-ms", type=float, default=250, help="between two events")
    parser.add_argument("--upstreams", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    raise_file_limit()
    with (
        tempfile.TemporaryDirectory(prefix="sage-streams-") as folder,
        World(Path(folder), options.upstreams, options.workers) as world,
    ):
        tally = uvloop.run(check(world, options))
    for what in ("lost", "mixed", "different"):
        found: list[str] = getattr(tally, what)
        print(f"{what:<10} {len(found)}", *found[:_SHOWN], sep="\n    " if found else "")
    if tally.most_open < options.streams:
        print(f"note: only {tally.most_open} were open at once: raise --events or --delay-ms")
    return 0 if tally.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
