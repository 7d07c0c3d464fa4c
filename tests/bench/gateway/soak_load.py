"""The clients of a soak: each kind does one thing again and again, and knows what must come of it."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.bench.gateway import mock_replies
from tests.bench.gateway.client import Connection, Reply, ReplyError, chat
from tests.bench.gateway.stream_load import PATH
from tests.bench.gateway.world import HEADERS

UNIT_S = 60.0
EVENTS, DELAY_MS = 30, 20
REQUESTS_A_CONNECTION = 50
LARGE_BYTES = 2 << 20
_JSON = mock_replies.CHAT.partition(b"\r\n\r\n")[2]
_SHOWN = 10


class WrongError(Exception):
    """An answer that is not what it must be."""


@dataclass
class Tally:
    """What the clients saw. `kills` counts how often a model server was killed."""

    port: int
    done: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    failed: int = 0
    faults: list[str] = field(default_factory=list)
    kills: int = 0
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def fail(self, kind: str, error: BaseException) -> None:
        self.failed += 1
        if len(self.faults) < _SHOWN:
            self.faults.append(f"{kind}: {error or type(error).__name__}")


def _expect(reply: Reply, status: int, body: bytes | None = None) -> None:
    if reply.status != status or (body is not None and reply.body != body):
        raise WrongError(f"{status} expected, but {reply.status} came: {bytes(reply.body[:200])!r}")


async def short(tally: Tally) -> None:
    """Short JSON answers over one kept connection."""
    async with Connection(tally.port, HEADERS) as connection:
        for _ in range(REQUESTS_A_CONNECTION):
            _expect(await connection.read(await connection.ask(chat("hello"))), 200, _JSON)
            tally.done["short"] += 1
            await asyncio.sleep(0.01)


async def large(tally: Tally) -> None:
    async with Connection(tally.port, HEADERS) as connection:
        _expect(await connection.read(await connection.ask(chat("x" * LARGE_BYTES))), 200, _JSON)
        tally.done["large"] += 1


def _prompt(number: int) -> str:
    return f"[mock id={number},chunks={EVENTS},delay={DELAY_MS}]"


async def stream(tally: Tally) -> None:
    """A stream to its end, which is an error event if its model server was killed meanwhile."""
    number, kills = next(tally.numbers), tally.kills
    async with Connection(tally.port, HEADERS) as connection:
        reply = await connection.read(await connection.ask(chat(_prompt(number), is_stream=True)))
    if tally.kills > kills and reply.status == 200 and b'"error"' in reply.body:
        tally.cut += 1
        return
    _expect(reply, 200, b"".join(mock_replies.own_events(True, EVENTS, number)))
    tally.done["stream"] += 1


async def leave(tally: Tally) -> None:
    """Leaves in the middle of a stream."""
    number = next(tally.numbers)
    async with Connection(tally.port, HEADERS) as connection:
        reply = await connection.ask(chat(_prompt(number), is_stream=True))
        _expect(reply, 200)
        for _ in range(random.randrange(EVENTS // 2)):
            if not await connection.read_some(reply):
                break
    tally.done["leave"] += 1


async def quit_early(tally: Tally) -> None:
    """Leaves before its request is whole."""
    async with Connection(tally.port, HEADERS) as connection:
        await connection.send(chat("hello"), PATH, announced=100_000)
    tally.done["quit"] += 1


async def lost(tally: Tally) -> None:
    """Asks for what there is not: a model, a path."""
    async with Connection(tally.port, HEADERS) as connection:
        _expect(await connection.read(await connection.ask(chat("hello", model="no-such-model"))), 404)
        _expect(await connection.read(await connection.ask(path="/no/such/path")), 404)
    tally.done["404"] += 2


async def strange(tally: Tally) -> None:
    """Brings no key, and a wrong one."""
    for headers in ({}, {"authorization": "Bearer wrong"}):
        async with Connection(tally.port, headers) as connection:
            _expect(await connection.read(await connection.ask(chat("hello"))), 401)
    tally.done["401"] += 2


KINDS: tuple[tuple[Callable[[Tally], Awaitable[None]], int, float], ...] = (
    (short, 8, 0.01),
    (stream, 24, 0.05),
    (leave, 8, 0.05),
    (quit_early, 2, 0.1),
    (large, 2, 0.3),
    (lost, 2, 0.1),
    (strange, 2, 0.1),
)
"""What is done, by how many clients at once, and the seconds that each rests about in between."""


async def client(kind: Callable[[Tally], Awaitable[None]], rest: float, tally: Tally, end: float) -> None:
    """One client until `end` (of the loop's clock); what goes wrong is counted, and it goes on."""
    loop = asyncio.get_running_loop()
    while loop.time() < end:
        try:
            async with asyncio.timeout(UNIT_S):
                await kind(tally)
        except (WrongError, ReplyError, OSError, TimeoutError) as error:
            tally.fail(kind.__name__, error)
        await asyncio.sleep(rest * random.uniform(0.5, 1.5))


async def all_clients(tally: Tally, end: float) -> None:
    async with asyncio.TaskGroup() as group:
        for kind, count, rest in KINDS:
            for _ in range(count):
                group.create_task(client(kind, rest, tally, end))
