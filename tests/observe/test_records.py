import json
import os
from pathlib import Path

import psutil
import pytest

from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.desired import LiveSpec, ReplicaId
from sage_reconcile.model.observed import LOST, Health, LastExit
from sage_reconcile.model.routing import Route, RoutingTable
from sage_reconcile.observe import records
from sage_reconcile.supervisor import tree
from tests.observe.launches import Launches, make_mark, write_exit


@pytest.mark.parametrize(
    ("state", "health"),
    [
        ("starting", Health.STARTING),
        ("ready", Health.READY),
        ("failing", Health.FAILING),
        ("backoff", Health.BACKOFF),
        ("stopping", Health.EXITED),
        ("exited", Health.EXITED),
        ("something new", Health.UNKNOWN),
    ],
)
def test_a_record_is_read_as_written(home: Home, launches: Launches, state: str, health: Health) -> None:
    mark = make_mark(home, port=8901)
    launches.write_record(mark, state, engine={"pid": 4, "started": 2.5}, something_new=1)
    record = records.read_launch(home, mark)
    assert record is not None
    assert record.mark == mark
    assert record.health is health
    assert record.engine == records.ProcessRef(4, 2.5)
    assert record.live == LiveSpec()
    assert (record.since, record.ready_at, record.restarts) == (100.0, 120.0, 2)


def test_whole_numbers_are_times_too(home: Home, launches: Launches) -> None:
    mark = make_mark(home, port=8901)
    launches.write_record(mark, "ready", since=100, live={"health": {"interval": 1}, "drain": 5})
    record = records.read_launch(home, mark)
    assert record is not None
    assert (record.since, record.live.drain, record.live.health.interval) == (100, 5, 1)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "mark": {"home": 3}}', "\udc80"]
)
def test_a_broken_record_is_no_record(home: Home, launches: Launches, text: str) -> None:
    mark = make_mark(home, port=8901)
    directory = launches.write_record(mark, "ready")
    for name in ("launch.json", "exit.json"):
        (directory / name).write_bytes(text.encode(errors="surrogateescape"))
    assert records.read_launch(home, mark) is None
    assert records.read_exit(home, mark) is None
    assert records.last_exits(home, "demo") == ()


def test_a_record_of_a_later_version_or_of_another_launch_is_no_record(
    home: Home, launches: Launches
) -> None:
    mark, other = make_mark(home, launch="l1", port=8901), make_mark(home, launch="l2", port=8901)
    launches.write_record(mark, "ready", version=2)
    assert records.read_launch(home, mark) is None
    launches.write_record(mark, "ready", mark=codec.to_plain(other))
    assert records.read_launch(home, mark) is None


def test_a_directory_in_place_of_a_file_is_no_record(home: Home) -> None:
    mark = make_mark(home, port=8901)
    (records.launch_dir(home, mark) / "launch.json").mkdir(parents=True)
    assert records.read_launch(home, mark) is None


def test_the_newest_exit_of_each_replica(home: Home) -> None:
    write_exit(home.launch_dir("demo", "chat", 0, "old"), 10.0, code=1)
    write_exit(home.launch_dir("demo", "chat", 0, "new"), 20.0, code=None, signal=9, cause="out of memory")
    write_exit(home.launch_dir("demo", "v1.5", 2, "x"), 5.0, hint="free some", tail=["a", "b"])
    write_exit(home.launch_dir("other", "chat", 0, "x"), 99.0)
    (home.run / "demo" / "stray").mkdir()
    (home.run / "demo" / "chat.x").mkdir()
    (home.run / "file").write_text("")
    assert records.last_exits(home, "demo") == (
        (
            ReplicaId("demo", "chat", 0),
            LastExit(20.0, None, 9, True, "out of memory", tail=("last words",)),
        ),
        (ReplicaId("demo", "v1.5", 2), LastExit(5.0, 1, None, True, "", "free some", ("a", "b"))),
    )
    assert [replica.stack for replica, _ in records.last_exits(home)] == ["demo", "demo", "other"]


def test_a_supervisor_that_could_not_say_how_it_ended(home: Home, launches: Launches) -> None:
    """What it had written of an attempt before is no news of that end."""
    mark = make_mark(home, port=8901)
    directory = launches.write_record(mark, "ready", supervisor={"pid": 2**22 + 1, "started": 5.0})
    write_exit(directory, 99.0, launch=mark.launch)
    ((_, end),) = records.last_exits(home)
    assert (end.summary, end.at, end.was_ready) == (LOST, 100.0, True)
    write_exit(directory, 101.0, launch=mark.launch, cause="the supervisor failed")
    assert records.last_exits(home)[0][1].cause == "the supervisor failed"


def test_a_clock_that_is_set_back_makes_no_old_end_the_newest(home: Home, launches: Launches) -> None:
    gone = {"pid": 2**22 + 1, "started": 5.0}
    boot = tree.boot_id()
    old, new = make_mark(home, launch="l1", port=8901), make_mark(home, launch="l2", port=8901)
    directory = launches.write_record(old, "exited", since=9000.0, since_up=10.0, boot=boot, supervisor=gone)
    write_exit(directory, 9000.0, launch="l1", up=11.0)
    directory = launches.write_record(new, "ready", since=100.0, since_up=30.0, boot=boot, supervisor=gone)
    write_exit(directory, 9001.0, launch="l2", up=20.0)
    ((_, end),) = records.last_exits(home)
    assert (end.cause, end.at) == (LOST, 100.0)


@pytest.mark.parametrize("state", ["exited", "ready"])
def test_a_supervisor_that_lives_or_has_said_how_it_ended(home: Home, launches: Launches, state: str) -> None:
    mark = make_mark(home, port=8901)
    me = {"pid": os.getpid(), "started": psutil.Process().create_time()}
    launches.write_record(mark, state, supervisor=me if state == "ready" else {"pid": 1, "started": 1.0})
    assert records.last_exits(home) == ()


def test_no_run_directory_is_no_exits(tmp_path: Path) -> None:
    home = Home(tmp_path / "never made")
    assert records.last_exits(home, "demo") == ()
    assert records.prune(home, ()) == ()
    assert records.read_routing(home) is None


def made(home: Home, engine: str, count: int) -> list[Path]:
    folders = [home.launch_dir("demo", engine, 0, f"l{number}") for number in range(count)]
    for number, folder in enumerate(folders):
        write_exit(folder, float(number))
        (folder / "engine.log").write_text("words")
        os.utime(folder, (1000 + number, 1000 + number))
    return folders


def test_prune_keeps_the_newest_and_the_living(home: Home) -> None:
    chat, embed = made(home, "chat", 6), made(home, "embed", 2)
    removed = records.prune(home, {"l0"}, keep=3)
    assert removed == (chat[2], chat[1])
    assert [folder for folder in chat if folder.exists()] == [chat[0], *chat[3:]]
    assert all(folder.exists() for folder in embed)
    assert records.prune(home, {"l0"}, keep=3) == ()


def test_prune_does_not_follow_links(home: Home, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    made(home, "chat", 1)
    (home.replica_dir("demo", "chat", 0) / "link").symlink_to(outside)
    records.prune(home, (), keep=0)
    assert (outside / "file").read_text() == "precious"


def test_the_published_table_is_read_where_it_is_whole(home: Home) -> None:
    table = RoutingTable((Route("m", "llm", ()),))
    home.routing_file.parent.mkdir()
    home.routing_file.write_bytes(codec.encode(table))
    assert records.read_routing(home) == table
    home.routing_file.write_text(json.dumps({"version": 2}))
    assert records.read_routing(home) is None
