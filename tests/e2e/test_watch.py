"""`sage watch` on real files and processes: saves, bad edits, deaths, and its own end."""

import os
import signal
import subprocess

from sage_reconcile.home import Home
from sage_reconcile.lock import applying
from tests.e2e.world import SAGE, Pids, Running, World, engine, kill, stack_text
from tests.processes import free_port, is_alive
from tests.waiting import wait_until


def watching(world: World, *options: str) -> Running:
    """A watcher that has made its first pass. Its interval is long: what it notices, it notices otherwise."""
    watcher = world.start("watch", "sage.yaml", *(options or ("--interval", "600")))
    watcher.says("watching")
    return watcher


def test_a_watcher_applies_saves_and_survives_bad_ones(world: World) -> None:
    """A save is applied; broken, emptied and deleted files stop nothing; the mended file goes on."""
    ports = {"a": free_port(), "b": free_port()}
    a, b = engine("a", port=ports["a"]), engine("b", port=ports["b"])
    world.write(a)
    watcher = watching(world)
    first = world.until_ready("a#0")
    watcher.says("ok", "start a#0")

    world.write(a, b)
    both = world.until_ready("a#0", "b#0")
    assert both["a#0"] == first["a#0"]
    line = watcher.says("ok", "start b#0")

    world.write_text(stack_text([a, b]).replace('"port": ', '"prot": '))
    line = watcher.says("sage.yaml:4:", "did you mean port?", after=line)
    line = watcher.says("the last good state is kept", after=line)
    world.write_text("")
    line = watcher.says("the last good state is kept", after=line)
    (world.folder / "sage.yaml").unlink()
    line = watcher.says("the last good state is kept", after=line)
    assert world.pids() == both

    world.write(b)
    watcher.says("the file is good again", after=line)
    assert world.until_ready("b#0")["b#0"] == both["b#0"]
    world.write_text("version: 1\nname: demo\nengines: []\n")
    world.until_none()
    assert watcher.process.poll() is None


def test_a_killed_supervisor_is_noticed_and_its_engine_started_anew(world: World) -> None:
    world.write(engine("a", "--children", "1", "--stubborn-children"), engine("b"))
    watching(world)
    before = world.until_ready("a#0", "b#0")
    kill(before["a#0"].supervisor)
    after = wait_until(lambda: _replaced(world, before["a#0"]), "the watcher starts a#0 anew")
    assert after["b#0"] == before["b#0"]
    world.until_ready("a#0", "b#0")


def _replaced(world: World, old: Pids) -> dict[str, Pids]:
    launches = {name: found[0] for name, found in world.launches().items() if len(found) == 1}
    is_new = launches.keys() == {"a#0", "b#0"} and launches["a#0"].launch != old.launch
    return launches if is_new else {}


def test_the_watcher_ends_and_the_engines_stay(world: World) -> None:
    world.write(engine("a"))
    for number in (signal.SIGTERM, signal.SIGINT):
        watcher = watching(world)
        pids = world.until_ready("a#0")
        watcher.signal(number)
        result = watcher.end()
        assert result.rc == 0
        assert "the engines stay" in result.out
        assert world.pids() == pids
    world.is_settled()


def test_an_edit_while_an_engine_loads_is_not_kept_waiting(world: World) -> None:
    slow = engine("slow", "--listen-delay", "300")
    world.write(slow)
    watcher = watching(world)
    watcher.says("start slow#0", "waiting")
    loading = wait_until(world.pids, "it loads")
    world.write(slow, engine("b"))
    watcher.says("ok", "start b#0")
    assert world.pids()["slow#0"] == loading["slow#0"]
    world.write(engine("b", port=world.record("b#0")["mark"]["placement"]["port"]))
    wait_until(lambda: not is_alive(loading["slow#0"].engine), "what is no longer wanted is stopped")


def test_a_crash_loop_backs_off(world: World) -> None:
    """Each failure waits longer; the others are served meanwhile, and an edit is a new chance at once."""
    counter = world.folder / "starts"
    port = free_port()
    bad = engine("bad", "--counter-file", str(counter), "--fail-starts", "1000", port=port)
    world.write(bad, engine("good"))
    watcher = watching(world)
    line = watcher.says("bad#0: failed 1 time; next attempt in")
    line = watcher.says("bad#0: failed 2 times; next attempt in", after=line)
    good = world.pids()["good#0"]
    assert len(counter.read_text().splitlines()) == 2
    world.write(
        engine("bad", port=port), engine("good", port=world.record("good#0")["mark"]["placement"]["port"])
    )
    assert world.until_ready("bad#0", "good#0")["good#0"] == good


def test_once_makes_one_pass(world: World) -> None:
    world.write(engine("a"))
    world("watch", "sage.yaml", "--once").ok()
    world.until_ready("a#0")
    world.write_text("engines: [{name: a}]")
    result = world("watch", "sage.yaml", "--once").failed()
    assert "sage.yaml:1:" in result.out
    assert "nothing is changed until it is mended" in result.out
    world.until_ready("a#0")


def test_a_crash_loop_is_left_alone_until_the_file_changes(world: World) -> None:
    restart = {"max_attempts": 1, "backoff": "10ms"}
    world.write(engine("a", "--exit-after", "0.3", restart=restart), engine("b"))
    watcher = watching(world, "--interval", "1")
    line = watcher.says("a#0: a crash loop, left alone", "tried again when the file changes")
    world.until_ready("b#0")
    (told,) = [text for text in world("events").ok().out.splitlines() if "a crash loop" in text]
    assert "exited with code 3" in told
    assert "start a#0" not in "".join(watcher.lines[line:])
    world.write(engine("a", restart=restart), engine("b"))
    world.until_ready("a#0", "b#0")


def test_two_watchers_and_an_apply_mend_one_engine_once(world: World) -> None:
    world.write(engine("a", "--children", "1", "--stubborn-children"))
    for _ in range(2):
        watching(world)
    before = world.until_ready("a#0")["a#0"]
    begun = world("events").ok().out.count("start begins")
    kill(before.supervisor)
    world.apply()
    after = world.until_ready("a#0")["a#0"]
    assert after.launch != before.launch
    assert world("events").ok().out.count("start begins") == begun + 1
    world.is_settled()


def test_a_watcher_that_was_killed_is_told_of(world: World) -> None:
    world.write(engine("a"))
    watcher = watching(world)
    before = world.until_ready("a#0")
    watcher.signal(signal.SIGKILL)
    watcher.end()
    watching(world).says(f"the watcher before this one (process {watcher.pid}) was killed")
    assert world.until_ready("a#0") == before


def test_a_save_through_a_symbolic_link_is_seen(world: World) -> None:
    """A mounted config map, a checkout that is switched: the name stays, what it points to changes."""
    port = free_port()
    (world.folder / "one.yaml").write_text(stack_text([engine("a", port=port)]))
    (world.folder / "two.yaml").write_text(stack_text([engine("a", port=port), engine("b")]))
    (world.folder / "sage.yaml").symlink_to("one.yaml")
    watching(world)
    before = world.until_ready("a#0")
    (world.folder / "next").symlink_to("two.yaml")
    os.replace(world.folder / "next", world.folder / "sage.yaml")
    assert world.until_ready("a#0", "b#0")["a#0"] == before["a#0"]


def test_a_watcher_that_waits_for_another_sage_can_be_ended(world: World) -> None:
    world.write(engine("a"))
    with applying(Home(world.home), print):
        watcher = world.start("watch", "sage.yaml")
        watcher.says("waiting: process")
        watcher.signal(signal.SIGTERM)
        assert watcher.end().rc == 0
    assert world.launches() == {}


def test_a_log_that_cannot_be_written_does_not_end_the_watcher(world: World) -> None:
    world.write(engine("a"))
    with open("/dev/full", "wb") as full:
        watcher = subprocess.Popen([*SAGE, "watch"], cwd=world.folder, env=world.environ, stdout=full)
    try:
        world.until_ready("a#0")
        world.write(engine("b"))
        world.until_ready("b#0")
        assert watcher.poll() is None
    finally:
        watcher.terminate()
        watcher.wait()
