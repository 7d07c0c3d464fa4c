"""The access log: whole lines from several processes, rotation, and disks that do not take them."""

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway import accesslog
from gateway.accesslog import MAX_PENDING, MAX_TEXT, Access, AccessLog
from gateway.meters import Meters
from gateway.settings import Settings
from tests.gateway.world import REPOSITORY


def record(number: int = 0, **more: Any) -> Access:
    given = {"method": "POST", "model": "m", "path": "/v1/completions", "status": 200, **more}
    return Access(1700000000.25 + number, f"r-{number}", **given)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "access.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids(path: Path) -> list[str]:
    return [line["request_id"] for line in lines(path)]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes, as on a full disk. Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_for_each_request(path: Path) -> None:
    log = AccessLog(path, Meters())
    log.flush()
    assert not path.exists()
    log.add(
        record(
            src="engine",
            backend="e#0",
            key="team",
            client="127.0.0.1",
            ms=12.3456789,
            first_byte_ms=1.23456,
            queued_ms=0.00051,
            held_ms=1000.0,
            retries=1,
            bytes_in=2,
            bytes_out=3,
            prompt_tokens=4,
            completion_tokens=5,
            stream=True,
        )
    )
    log.add(record(1, status=429, src="sage", error="queue_full"))
    log.flush()
    first, second = lines(path)
    assert first == {
        "ts": 1700000000.25,
        "request_id": "r-0",
        "method": "POST",
        "model": "m",
        "path": "/v1/completions",
        "status": 200,
        "src": "engine",
        "backend": "e#0",
        "key": "team",
        "client": "127.0.0.1",
        "ms": 12.345,
        "first_byte_ms": 1.234,
        "queued_ms": 0.0,
        "held_ms": 1000.0,
        "retries": 1,
        "bytes_in": 2,
        "bytes_out": 3,
        "prompt_tokens": 4,
        "completion_tokens": 5,
        "stream": True,
        "error": "",
    }
    assert (second["status"], second["error"], second["first_byte_ms"]) == (429, "queue_full", None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    log.close()


def test_what_waits_is_bounded(path: Path) -> None:
    log = AccessLog(path, Meters())
    for number in range(MAX_PENDING + 1):
        log.add(record(number))
    assert len(lines(path)) == MAX_PENDING
    log.close()
    assert len(lines(path)) == MAX_PENDING + 1


def test_texts_of_clients(path: Path) -> None:
    """Line breaks, half of a surrogate pair, and what is much too long."""
    log = AccessLog(path, Meters())
    log.add(record(0, model='a"\n{}\x00'))
    log.add(record(1, model="\ud800"))
    log.add(record(2, model="x" * 100_000, path="/" + "y" * 100_000))
    log.close()
    first, second, third = lines(path)
    assert first["model"] == 'a"\n{}\x00'
    assert second["model"] == "?"
    assert (len(third["model"]), len(third["path"])) == (MAX_TEXT, MAX_TEXT)


def test_rotation_keeps_three_old_ones(path: Path) -> None:
    log = AccessLog(path, Meters(), max_bytes=1)
    for number in range(6):
        log.add(record(number))
        log.flush()
    log.close()
    old = [path.with_name(f"access.jsonl.{number}") for number in (1, 2, 3)]
    assert [ids(known) for known in (path, *old)] == [["r-5"], ["r-4"], ["r-3"], ["r-2"]]
    assert {known.name for known in path.parent.iterdir()} == {
        "access.jsonl", "access.jsonl.lock", *(known.name for known in old),
    }  # fmt: skip


@pytest.mark.parametrize("moved", [True, False])
def test_a_file_that_was_moved_or_removed_is_made_anew(path: Path, moved: bool) -> None:
    log = AccessLog(path, Meters())
    log.add(record(0))
    log.flush()
    if moved:
        path.replace(path.with_name("mine.jsonl"))
    else:
        path.unlink()
    log.add(record(1))
    log.close()
    assert ids(path) == ["r-1"]


WRITER = """
import sys
from pathlib import Path
from gateway.accesslog import Access, AccessLog
from gateway.meters import Meters

log = AccessLog(Path(sys.argv[1]), Meters(), max_bytes=250_000)
for number in range(300):
    for part in range(3):
        log.add(Access(1.0, f"{sys.argv[2]}-{number}-{part}", "POST", "/x", "m", 200))
    log.flush()
"""


def test_several_workers_share_the_file(path: Path) -> None:
    """The whole of it is more than one file and less than four."""
    arguments = [[sys.executable, "-c", WRITER, str(path), name] for name in "abc"]
    writers = [subprocess.Popen(command, cwd=REPOSITORY) for command in arguments]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    files = [known for known in path.parent.iterdir() if known.suffix != ".lock"]
    assert len(files) > 1
    found = [one for known in files for one in ids(known)]
    assert sorted(found) == sorted(f"{w}-{n}-{p}" for w in "abc" for n in range(300) for p in range(3))


def test_a_full_disk_costs_lines_and_no_more(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    meters = Meters()
    log = AccessLog(path, meters)
    log.add(record(0))
    log.flush()
    size = path.stat().st_size
    with file_size_limit(size + size // 2):
        for number in range(1, 5):
            log.add(record(number))
            log.flush()
    assert meters.numbers.access_log_lost == 4
    for number in range(5, 7):
        log.add(record(number))
        log.flush()
    log.close()
    whole, torn, *rest = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(whole)["request_id"] == "r-0"
    assert torn.startswith('{"ts":')
    assert [json.loads(line)["request_id"] for line in rest] == ["r-5", "r-6"]
    assert [words.partition(" ")[0] for words in caplog.messages] == ["cannot", str(path)]
    assert "4 lines are lost" in caplog.messages[1]


def test_a_folder_that_cannot_be_made(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.write_text("a file in its place")
    meters = Meters()
    log = AccessLog(path, meters)
    for number in range(3):
        log.add(record(number))
        log.flush()
    assert meters.numbers.access_log_lost == 3
    assert len(caplog.messages) == 1
    path.parent.unlink()
    log.add(record(3))
    log.close()
    assert ids(path) == ["r-3"]


def test_a_pipe_whose_reader_is_slow_holds_nobody_up(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    meters = Meters()
    log = AccessLog(path, meters)
    try:
        for _ in range(20):
            for number in range(1000):
                log.add(record(number))
            log.flush()
        assert meters.numbers.access_log_lost > 0
        assert os.read(reader, 1 << 16).startswith(b'{"ts":')
    finally:
        log.close()
        os.close(reader)


def test_no_descriptor_is_left(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    log = AccessLog(path, Meters(), max_bytes=1)
    for number in range(10):
        log.add(record(number))
        log.flush()
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_switch() -> None:
    assert Settings.from_environ({}).access_log
    assert not Settings.from_environ({"SAGE_GATEWAY_ACCESS_LOG": "off"}).access_log
    assert accesslog.MAX_BYTES == 50 << 20
