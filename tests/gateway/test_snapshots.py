"""The numbers of several workers of one gateway, with real processes that end in the middle of it."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.identity import is_alive, name_of, usage_of
from gateway.meters import KEEP_S, Meters
from gateway.snapshots import FOLD_S, METERS_PER_SECOND, Snapshots
from tests.gateway.world import REPOSITORY, table, wait_for

# A worker of this process's gateway: counts `n` for a model, writes, says so, and waits for its end.
WORKER = """
import sys
from pathlib import Path
from gateway.meters import Meters
from gateway.snapshots import Snapshots
from tests.gateway.world import table

folder, gateway, model, n = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
meters = Meters()
meters.follow(table({model: []}), now=1.0)
route = meters.route(model)
route.replies[200] = route.in_flight = n
route.duration.observe(0.5)
Snapshots(folder, meters, gateway).write(1.0)
print("written", flush=True)
sys.stdin.read()
"""


class Worker:
    """A process with numbers of its own; killed when the block ends."""

    def __init__(self, folder: Path, n: int, model: str = "m") -> None:
        arguments = [str(folder), str(os.getpid()), model, str(n)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.name = ""

    def __enter__(self) -> "Worker":
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"written\n"
        self.name = name_of(self.process.pid)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def meters() -> Meters:
    made = Meters()
    made.follow(table({"m": []}), now=1.0)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "metrics"


def of(snapshots: Snapshots, model: str = "m", now: float = 5.0) -> tuple[int, int]:
    """Replies and requests in flight, of all workers."""
    route = snapshots.total(now).numbers.routes[model]
    return route.replies.get(200, 0), route.in_flight


def test_a_killed_worker_keeps_its_counters_and_loses_its_gauges(
    folder: Path, meters: Meters, stack: ExitStack
) -> None:
    snapshots = Snapshots(folder, meters)
    meters.route("m").replies[200] = meters.route("m").in_flight = 1
    first, second = stack.enter_context(Worker(folder, 10)), stack.enter_context(Worker(folder, 100))
    assert of(snapshots) == (111, 111)
    assert {usage.pid for usage in snapshots.total(5.0).workers} == {
        os.getpid(), first.process.pid, second.process.pid,
    }  # fmt: skip
    first.kill()
    assert of(snapshots) == (111, 101)
    stack.enter_context(Worker(folder, 1000))
    assert of(snapshots) == (1111, 1101)
    assert snapshots.total(5.0).numbers.routes["m"].duration.total == 1.5


# A parent of two workers, as uvicorn starts them; multiprocessing's helper process ends with it.
PARENT = """
import multiprocessing, sys
from pathlib import Path
from tests.gateway.test_snapshots import write_one

spawn = multiprocessing.get_context("spawn")
workers = [spawn.Process(target=write_one, args=(Path(sys.argv[1]),)) for _ in "ab"]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
"""


def write_one(folder: Path) -> None:
    Snapshots(folder, Meters()).write(1.0)


def test_workers_of_multiprocessing_share_their_parent_s_folder(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", PARENT, str(folder)], cwd=REPOSITORY, check=True)
    [shared] = folder.iterdir()
    # Whoever came second may have found the first one ended, and folded it.
    written = [json.loads(path.read_bytes()) for path in shared.glob("*.json")]
    assert len([*shared.glob("*-*.json")]) + sum(len(snapshot["folded"]) for snapshot in written) == 2


def test_a_zombie_has_ended(folder: Path, meters: Meters) -> None:
    snapshots = Snapshots(folder, meters)
    with Worker(folder, 10) as worker:
        os.kill(worker.process.pid, 9)
        wait_for(lambda: not is_alive(worker.name), "the worker is dead, though not reaped")
        assert of(snapshots) == (10, 0)


def test_workers_that_ended_leave_one_file(folder: Path, meters: Meters) -> None:
    snapshots = Snapshots(folder, meters)
    for _ in range(3):
        with Worker(folder, 10) as worker:
            pass
    [mine] = folder.iterdir()
    (mine / f"{worker.name}.{worker.name}.partial").write_text("killed while it wro")
    snapshots.write(5.0)
    assert {path.name for path in mine.iterdir()} == {f"{name_of(os.getpid())}.json", "ended.json", "lock"}
    assert of(snapshots) == (30, 0)
    with Worker(folder, 10):
        pass
    assert of(snapshots) == (40, 0)
    snapshots.write(5.0 + 2 * FOLD_S)
    assert of(snapshots) == (40, 0)


def test_a_file_that_is_folded_and_still_there_counts_once(folder: Path, meters: Meters) -> None:
    """As when the worker that folds dies before it removes the file."""
    snapshots = Snapshots(folder, meters)
    with Worker(folder, 10) as worker:
        [mine] = folder.iterdir()
        path = mine / f"{worker.name}.json"
        data = path.read_bytes()
    snapshots.write(5.0)
    assert not path.exists()
    path.write_bytes(data)
    assert of(snapshots) == (10, 0)
    snapshots.write(5.0 + 2 * FOLD_S)
    assert of(snapshots) == (10, 0)
    assert not path.exists()


def test_ended_workers_do_not_remember_a_model_for_ever(folder: Path, meters: Meters) -> None:
    snapshots = Snapshots(folder, meters)
    with Worker(folder, 10, model="old"):
        pass
    snapshots.write(5.0)
    assert of(snapshots, "old") == (10, 0)
    assert "old" not in snapshots.total(6.0 + KEEP_S).numbers.routes
    snapshots.write(2 * KEEP_S)
    [mine] = folder.iterdir()
    assert json.loads((mine / "ended.json").read_bytes())["numbers"]["routes"] == {}


def test_writes_once_a_second_and_again_when_the_file_is_gone(folder: Path, meters: Meters) -> None:
    snapshots = Snapshots(folder, meters)
    snapshots.write(5.0)
    [path] = folder.glob("*/*-*.json")
    first = path.stat().st_ino
    meters.route("m").retries = 3
    snapshots.write(5.9)
    assert path.stat().st_ino == first
    snapshots.write(6.0)
    assert json.loads(path.read_bytes())["numbers"]["routes"]["m"]["retries"] == 3
    written = path.stat().st_ino
    snapshots.write(7.0)
    assert path.stat().st_ino == written
    path.unlink()
    snapshots.write(8.0)
    assert path.exists()


def test_what_was_told_is_on_disk(folder: Path, meters: Meters) -> None:
    snapshots = Snapshots(folder, meters)
    snapshots.write(5.0)
    meters.route("m").retries = 3
    snapshots.total(5.1)
    [path] = folder.glob("*/*-*.json")
    assert json.loads(path.read_bytes())["numbers"]["routes"]["m"]["retries"] == 3


def test_files_of_gateways_that_are_gone_are_removed(folder: Path, meters: Meters) -> None:
    snapshots = Snapshots(folder, meters)
    snapshots.write(5.0)
    # The id of this process, but another start: the id was given again.
    for gone in (f"{os.getpid()}-1", "no-number"):
        (folder / gone).mkdir()
        (folder / gone / "1-1.json").write_text("{}")
    snapshots.start()
    assert [path.name for path in folder.iterdir()] == [name_of(os.getpid())]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"layout": "of another version"}', b"\xff"])
def test_a_file_that_cannot_be_used_is_left_out(folder: Path, meters: Meters, data: bytes) -> None:
    snapshots = Snapshots(folder, meters)
    meters.route("m").replies[200] = 1
    with Worker(folder, 10) as worker:
        [mine] = folder.iterdir()
        (mine / f"{worker.name}.json").write_bytes(data)
        assert of(snapshots) == (1, 0)


def test_a_folder_that_cannot_be_written_costs_no_scrape(
    folder: Path, meters: Meters, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file in its place")
    snapshots = Snapshots(folder, meters)
    snapshots.start()
    meters.route("m").replies[200] = 1
    for now in range(3):
        assert of(snapshots, now=float(now)) == (1, 0)
    assert len(caplog.messages) == 1
    assert "cannot write" in caplog.messages[0]


def test_what_a_process_takes() -> None:
    mine = usage_of(os.getpid())
    assert mine is not None
    assert mine.resident_bytes > 1 << 20
    assert mine.open_fds > 2
    assert mine.cpu_seconds > 0
    assert usage_of(2**22 + 1) is None
    assert name_of(2**22 + 1) == ""


def test_many_meters_are_written_less_often(folder: Path) -> None:
    meters = Meters()
    names = [f"m{number}" for number in range(3 * METERS_PER_SECOND)]
    meters.follow(table({name: [] for name in names}), now=1.0)
    for name in names:
        meters.route(name).retries = 1
    snapshots = Snapshots(folder, meters)
    snapshots.write(5.0)
    [path] = folder.glob("*/*-*.json")
    first = path.stat().st_ino
    meters.route("m0").retries = 2
    snapshots.write(8.9)
    assert path.stat().st_ino == first
    snapshots.write(9.0)
    assert path.stat().st_ino != first
