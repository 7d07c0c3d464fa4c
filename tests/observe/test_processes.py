import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.observe import ports as ports_module
from sage_reconcile.observe import processes
from sage_reconcile.observe.processes import scan
from sage_reconcile.supervisor import tree
from tests.observe.launches import Launches, eventually, make_mark


def test_a_launch_is_its_supervisor_its_engine_and_all_below(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    supervisor = launches.start(mark, "--children", "2")
    (live,) = scan(home).live
    assert live.mark == mark
    assert live.supervisor.pid == supervisor.pid
    engine = psutil.Process(supervisor.pid).children()[0]
    assert live.engine is not None
    assert live.engine.pid == engine.pid
    assert set(live.pids) == {supervisor.pid, engine.pid, *(child.pid for child in engine.children())}
    assert len(live.pids) == 4
    assert live.supervisor.started == pytest.approx(psutil.Process(supervisor.pid).create_time(), abs=0.1)


def test_nothing_of_ours_is_an_empty_table(home: Home) -> None:
    table = scan(home)
    assert (table.live, table.orphans, table.unreadable) == ((), (), ())
    assert os.getpid() in table.pids
    assert table.boot_id == tree.boot_id() != ""


UNMARKED = """
import os, signal, subprocess, sys
env = {name: value for name, value in os.environ.items() if not name.startswith("SAGE_")}
sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
def start(**options):
    return subprocess.Popen(sleeper, env=env, **options).pid
far = start(start_new_session=True)
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, str(start()).encode())
    os._exit(0)
os.wait()
print(far, os.read(reader, 20).decode(), flush=True)
signal.pause()
"""


def test_workers_without_a_mark_belong_by_descent_or_by_session(home: Home, launches: Launches) -> None:
    """One is a child in a session of its own; one lost its parent, and only the session tells."""
    process = subprocess.Popen(
        [sys.executable, "-c", UNMARKED],
        env={**os.environ, "SAGE_LAUNCH": codec.encode(make_mark(home)).decode(), "SAGE_ROLE": "supervisor"},
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    launches.supervisors.append(process)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    try:
        assert psutil.Process(workers[1]).ppid() != process.pid
        (live,) = scan(home).live
        assert set(live.pids) == {process.pid, *workers}
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)


def test_a_launch_whose_supervisor_died_is_an_orphan(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    supervisor = launches.start(mark, "--children", "1")
    (live,) = scan(home).live
    supervisor.kill()
    supervisor.wait()
    table = scan(home)
    assert table.live == ()
    (orphan,) = table.orphans
    assert orphan.mark == mark
    assert set(orphan.pids) == set(live.pids) - {supervisor.pid}


def test_a_zombie_supervisor_is_not_alive(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    supervisor = launches.start(mark)
    os.kill(supervisor.pid, signal.SIGKILL)
    eventually(
        lambda: psutil.Process(supervisor.pid).status() == psutil.STATUS_ZOMBIE, "the supervisor is a zombie"
    )
    table = scan(home)
    assert table.live == ()
    assert [orphan.mark for orphan in table.orphans] == [mark]
    assert supervisor.pid not in table.pids


def test_another_home_is_foreign_and_its_launch_no_member_of_ours(home: Home, launches: Launches) -> None:
    ours, theirs = make_mark(home), replace(make_mark(home), home=f"{home.root}-elsewhere")
    launches.start(ours)
    stranger = launches.sleeper(SAGE_LAUNCH=codec.encode(theirs).decode())
    table = scan(home)
    assert [live.mark for live in table.live] == [ours]
    (foreign,) = [launch for launch in table.foreign if launch.mark.home == theirs.home]
    assert (foreign.mark, foreign.pids) == (theirs, (stranger.pid,))
    assert foreign.user == psutil.Process().username()
    assert table.orphans == ()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_mark_of_our_home_on_another_users_process_is_foreign(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    process = subprocess.Popen(
        ["sleep", "600"],
        env={"PATH": os.environ["PATH"], "SAGE_LAUNCH": codec.encode(mark).decode()},
        user=65534,
    )
    launches.others.append(process)
    table = scan(home)
    assert table.orphans == ()
    assert [(foreign.pids, foreign.user) for foreign in table.foreign if foreign.mark == mark] == [
        ((process.pid,), "nobody")
    ]


def test_two_launches_of_one_replica_stay_two(home: Home, launches: Launches) -> None:
    first, second = make_mark(home, launch="l1"), make_mark(home, launch="l2")
    launches.start(first, is_listening=False)
    launches.start(second, is_listening=False)
    assert [live.mark for live in scan(home).live] == [first, second]


def test_a_forked_child_that_still_looks_like_the_supervisor_is_not_it(
    home: Home, launches: Launches
) -> None:
    mark = make_mark(home)
    supervisor = launches.start(mark, is_listening=False)
    twin = launches.sleeper(SAGE_LAUNCH=codec.encode(mark).decode(), SAGE_ROLE="supervisor")
    (live,) = scan(home).live
    assert live.supervisor.pid == supervisor.pid
    assert twin.pid in live.pids


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        ('{"home": "HOME", broken', ""),
        ('{"home": "HOME"}', ""),
        ('{"home": "HOME", "replica": 5}', ""),
        ('{"home": "HOME", "replica": {"stack": "demo", "engine": "chat", "replica": 1}}', " of demo/chat#1"),
    ],
)
def test_an_unreadable_mark_is_noted_with_what_can_be_told(
    home: Home, launches: Launches, text: str, whose: str
) -> None:
    process = launches.sleeper(SAGE_LAUNCH=text.replace("HOME", str(home.root)))
    (note,) = scan(home).unreadable
    assert note.pid == process.pid
    assert note.reason.startswith(f"process {process.pid}{whose} carries a mark that cannot be read: ")


def test_a_mark_of_a_later_version_is_noted_not_guessed(home: Home, launches: Launches) -> None:
    later = replace(make_mark(home), version=2)
    launches.sleeper(SAGE_LAUNCH=codec.encode(later).decode())
    table = scan(home)
    assert table.orphans == ()
    assert "its version is 2" in table.unreadable[0].reason


def test_an_unreadable_mark_of_another_home_is_none_of_our_business(home: Home, launches: Launches) -> None:
    for text in ('{"home": "/elsewhere"}', "{broken", "[1]", "null", '{"version": 1}'):
        launches.sleeper(SAGE_LAUNCH=text)
    assert scan(home).unreadable == ()


def test_listening_ports_name_their_holder(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    launches.start(mark)
    table = scan(home)
    assert table.ports is not None
    (holder,) = [port for port in table.ports if port.port == mark.placement.port]
    assert table.live[0].engine is not None
    assert holder.pid == table.live[0].engine.pid
    assert holder.name.startswith("python")


def test_ports_that_cannot_be_read_are_said_not_empty() -> None:
    ports, reason = ports_module.listening([Path("/proc/net")])
    assert ports is None
    assert "listening ports cannot be read" in reason


def test_processes_that_vanish_midway_do_not_matter(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = [*os.listdir("/proc"), str(gone.pid)]
    monkeypatch.setattr(processes.os, "listdir", lambda _: names)
    table = scan(home)
    assert gone.pid not in table.pids
    assert os.getpid() in table.pids


def test_a_name_with_parentheses_and_spaces_is_no_riddle(
    home: Home, launches: Launches, tmp_path: Path
) -> None:
    program = tmp_path / ") Z 1 (x"
    program.symlink_to("/bin/sleep")
    mark = make_mark(home)
    process = subprocess.Popen([program, "600"], env={"SAGE_LAUNCH": codec.encode(mark).decode()})
    launches.others.append(process)
    eventually(lambda: scan(home).orphans != (), "the process became the program")
    (orphan,) = scan(home).orphans
    assert (orphan.mark, orphan.pids) == (mark, (process.pid,))


def test_a_home_owns_nothing_of_another_one(home: Home, launches: Launches, tmp_path: Path) -> None:
    mark = make_mark(home)
    launches.start(mark, is_listening=False)
    table = scan(Home(tmp_path / "other"))
    assert (table.live, table.orphans) == ((), ())
    assert [foreign.mark for foreign in table.foreign if foreign.mark.home == mark.home] == [mark]
