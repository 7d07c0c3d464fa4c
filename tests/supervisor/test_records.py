"""Files of a launch: live settings, deleted directories, rotated logs, full disks, small memory."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sage_reconcile.supervisor.logfile import QUIET, EngineLog
from sage_reconcile.supervisor.records import Records, write_atomic
from tests.supervisor.conftest import Launch, until

Make = Callable[..., Launch]


def test_live_settings_are_taken_without_a_restart(launch: Make) -> None:
    one = launch("--ignore-sigterm").live("health", interval=3600.0)
    one.start()
    engine = one.until_state("ready")["engine"]
    live = json.loads(json.dumps(one.order["live"]))
    live["drain"] = 0.1
    live["health"]["interval"] = 0.1
    write_atomic(one.directory / "live.json", json.dumps(live).encode())
    until("the new settings", lambda: one.record()["live"] == live)
    assert one.record()["engine"] == engine
    until("a probe by the new interval", lambda: "GET /health" in one.log())
    one.signal()
    one.until_gone()
    assert one.record("exit.json")["signal"] == 9


def test_live_settings_can_shorten_a_drain_under_way(launch: Make) -> None:
    one = launch("--ignore-sigterm")
    one.order["live"]["drain"] = 3600.0
    one.start()
    one.until_state("ready")
    one.signal()
    one.until_state("stopping")
    write_atomic(one.directory / "live.json", json.dumps(one.order["live"] | {"drain": 0.0}).encode())
    one.until_gone()


def test_bad_live_settings_change_nothing_and_are_told(launch: Make) -> None:
    one = launch().start()
    one.until_state("ready")
    write_atomic(one.directory / "live.json", b'{"drain": "soon"}')
    until("the complaint", lambda: "live.json is not taken: live.health: expected an object" in one.log())
    assert one.record()["live"] == one.order["live"]


def test_a_deleted_directory_comes_back_with_records_and_log(launch: Make) -> None:
    one = launch().start()
    before = one.until_state("ready")
    shutil.rmtree(one.directory.parents[2])
    until("launch.json again", one.record)
    until("the log again", lambda: "GET /health" in one.log())
    assert one.record() == before
    assert one.directory.stat().st_mode & 0o777 == 0o700


def test_a_stop_works_without_any_file(launch: Make) -> None:
    one = launch().start()
    one.until_state("ready")
    shutil.rmtree(one.directory)
    one.signal()
    one.until_gone()
    assert one.record("exit.json")["cause"] == "stopped"


def test_the_log_is_rotated_by_size(launch: Make) -> None:
    one = launch("--print-bytes", "1000000")
    one.order["log"] = {"max_bytes": 1 << 17, "keep": 2}
    one.start()
    one.until_state("ready")
    names = {path.name: path.stat().st_size for path in one.directory.glob("engine.log*")}
    assert set(names) == {"engine.log", "engine.log.1", "engine.log.2"}
    assert max(names.values()) <= 1 << 17
    text = one.log("engine.log.2") + one.log("engine.log.1") + one.log()
    numbers = [int(number) for number in re.findall(r"^\d{63}$", text, re.MULTILINE)]
    assert numbers == list(range(numbers[0], 1000000 // 64))


def test_the_tail_outlives_rotation_and_progress_bars(tmp_path: Path) -> None:
    log = EngineLog(tmp_path, max_bytes=1024, keep=0)
    log.begin("first")
    for number in range(5000):
        log.write(f"loading {number}\r\x1b[32mline {number}\x1b[0m\n\n".encode())
    log.write(b"cut off\xff")
    assert log.tail()[-3:] == ["loading 4999", "line 4999", "cut off�"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.log"]
    log.begin("second")
    assert log.tail() == []
    assert (tmp_path / "engine.log").read_text() == "--- sage: second ---\n"


def test_one_write_larger_than_a_log_file_is_kept_whole(tmp_path: Path) -> None:
    log = EngineLog(tmp_path, max_bytes=1024, keep=1)
    log.begin("first")
    log.write(b"x" * 5000 + b"\n")
    assert (tmp_path / "engine.log").read_bytes().count(b"x") == 5000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    """A file as large as its disk allows."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass


def test_a_full_disk_costs_output_but_not_the_engine(launch: Make, small_disk: Path, tmp_path: Path) -> None:
    one = launch()
    one.order["mark"]["home"] = str(tmp_path)
    one.directory = small_disk / "launch"
    one.order["directory"] = str(one.directory)
    one.start()
    engine = one.until_state("ready")["engine"]
    filler = small_disk / "filler"
    fill(filler)
    for _ in range(200):
        one.chat()
    size = (one.directory / "engine.log").stat().st_size
    until("an event", lambda: "output is lost: No space left" in (tmp_path / "events.jsonl").read_text())
    filler.unlink()
    assert one.record()["engine"] == engine
    until("the notice", lambda: "bytes of output are missing here: No space left on device" in one.log())
    assert (one.directory / "engine.log").stat().st_size > size


def test_lost_output_is_told_of_at_times(tmp_path: Path) -> None:
    place = tmp_path / "engine.log"
    place.mkdir()
    log = EngineLog(tmp_path, 1 << 20, 1)
    assert log.take_loss(0.0) == ""
    for now, told in ((1.0, True), (2.0, False), (2.0 + QUIET, True)):
        log.write(b"lost")
        assert bool(log.take_loss(now)) is told
    assert log.take_loss(100.0) == ""


def test_records_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("a file where the directory should be")
    records = Records(place)
    records.put("launch.json", {"a": 1})
    place.unlink()
    records.upkeep()
    assert json.loads((place / "launch.json").read_text()) == {"a": 1}
    assert [path.name for path in place.iterdir()] == ["launch.json"]


def test_no_temporary_file_stays_behind(launch: Make) -> None:
    one = launch().start()
    one.until_state("ready")
    one.signal()
    one.until_gone()
    names = {path.name for path in one.directory.iterdir()}
    assert names == {"engine.log", "exit.json", "launch.json", "supervisor.log"}
    assert one.log("supervisor.log") == ""


def test_the_supervisor_stays_small(launch: Make) -> None:
    one = launch().live("health", interval=0.05).start()
    one.until_state("ready")
    until("many probes", lambda: one.log().count("GET /health") > 20)
    lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
    pss = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    assert pss < 16 * 1024


def test_loads_nothing_large() -> None:
    """Each of these would be a megabyte in every supervisor."""
    code = "import sage_reconcile.supervisor.main, sys; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", f"import sys; sys.modules['ssl'] = None; {code}"]
    environ = {"PYTHONPATH": str(Path(__file__).parents[2])}
    loaded = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()
    assert "sage_reconcile.supervisor.probe" in loaded
    assert {"http.client", "email", "asyncio", "unicodedata", "encodings.idna", "random"}.isdisjoint(loaded)


def test_needs_nothing_but_the_standard_library(launch: Make) -> None:
    """It runs with -S: an import from site-packages, by any file of ours, would fail at its start."""
    one = launch().start()
    command = Path(f"/proc/{one.pid}/cmdline").read_bytes().split(b"\0")
    assert command[1:3] == [b"-I", b"-S"]
    assert "site-packages" not in Path(f"/proc/{one.pid}/maps").read_text()
    one.signal(signal.SIGTERM)
    one.until_gone()
