"""The gateway under mixed load for long: does its memory stay flat, and does any request fail?

Short answers, streams, clients that leave, large bodies, unknown models and paths, wrong keys, against two
fake model servers, one of which is killed and started again now and then. A stream that was running on it
must end with an error event, and is counted as cut; every other answer must be right, to the byte. Run as
`python -m tests.bench.gateway.soak [--seconds 1800]`; exits 1 unless the memory is flat and nothing failed.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.bench.gateway.processes import (
    end_on_sigterm,
    memory_mib,
    open_files,
    process_tree,
    raise_file_limit,
)
from tests.bench.gateway.soak_load import Tally, all_clients
from tests.bench.gateway.world import World

FLAT = 1.05
"""The last third's memory, as a multiple of the middle third's."""

SAMPLES, LINES = 90, 30
DOWN_S = 2.0
IDLE_S = 6.0
"""Longer than idle connections to the model servers are kept."""


@dataclass(frozen=True)
class Sample:
    """One look at the gateway's processes: MiB now, open file descriptors."""

    at: float
    rss: float
    files: int


def look(pid: int, at: float) -> Sample:
    tree = process_tree(pid)
    return Sample(at, sum(memory_mib(one, "VmRSS") for one in tree), sum(map(open_files, tree)))


def is_flat(samples: Sequence[Sample]) -> tuple[bool, float, float]:
    """Whether it is, and the medians of the middle and the last third, MiB."""
    third = len(samples) // 3
    middle = statistics.median(sample.rss for sample in samples[third : 2 * third])
    last = statistics.median(sample.rss for sample in samples[2 * third :])
    return last <= FLAT * middle, middle, last


async def kill_now_and_then(world: World, tally: Tally, every: float, end: float) -> None:
    """Kills one model server, then the other, never both at once."""
    loop = asyncio.get_running_loop()
    number = 0
    while loop.time() + every < end:
        await asyncio.sleep(every - DOWN_S)
        tally.kills += 1
        await asyncio.to_thread(world.kill_upstream, number)
        await asyncio.sleep(DOWN_S)
        await asyncio.to_thread(world.start_upstream, number)
        number = 1 - number


async def watch(world: World, tally: Tally, seconds: float) -> list[Sample]:
    """Looks SAMPLES times while the load runs. Raises BenchError if the gateway ends."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    samples = []
    print(f"{'s':>6} {'RSS MiB':>8} {'files':>6} {'requests':>10} {'cut':>5} {'kills':>5} {'failed':>6}")
    for number in range(1, SAMPLES + 1):
        await asyncio.sleep(began + seconds * number / SAMPLES - loop.time())
        world.gateway.check()
        samples.append(look(world.gateway.pid, loop.time() - began))
        if number % (SAMPLES // LINES) == 0:
            now, done = samples[-1], sum(tally.done.values())
            counts = f"{done:>10,} {tally.cut:>5} {tally.kills:>5} {tally.failed:>6}"
            print(f"{now.at:>6.0f} {now.rss:>8.1f} {now.files:>6} {counts}", flush=True)
    return samples


async def soak(world: World, options: argparse.Namespace) -> bool:
    """Prints what happens; whether all was well."""
    tally, seconds = Tally(world.port), options.seconds
    end = asyncio.get_running_loop().time() + seconds
    before = look(world.gateway.pid, 0.0)
    async with asyncio.TaskGroup() as group:
        group.create_task(all_clients(tally, end))
        group.create_task(kill_now_and_then(world, tally, options.kill_every, end))
        watching = group.create_task(watch(world, tally, seconds))
    await asyncio.sleep(options.idle)
    after = look(world.gateway.pid, seconds)
    is_well, middle, last = is_flat(watching.result())
    print(", ".join(f"{kind}: {count:,}" for kind, count in sorted(tally.done.items())))
    print(f"streams cut by {tally.kills} kills, and told so: {tally.cut}")
    for when, idle in (("before", before), ("after", after)):
        print(f"idle {when}: {idle.rss:.1f} MiB, {idle.files} files")
    growth = f"{middle:.1f} MiB in the middle third, {last:.1f} in the last ({last / middle:.3f} x)"
    print(f"memory: {'flat' if is_well else 'GROWS'}: {growth}")
    print(f"failed: {tally.failed}", *tally.faults, sep="\n    ")
    return is_well and not tally.failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--kill-every", type=float, default=15, help="seconds between two kills")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds before the last look")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    end_on_sigterm()
    raise_file_limit()
    with (
        tempfile.TemporaryDirectory(prefix="sage-soak-") as folder,
        World(Path(folder), 2, options.workers) as world,
    ):
        is_well = uvloop.run(soak(world, options))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
