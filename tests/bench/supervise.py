"""Measures supervising side by side with supervisord. `make bench-supervise` runs it.

Both keep the same twenty fake engines on this machine, in turns, with the settings that each has by default.
Told are the time from the SIGKILL of an engine to the process that takes its place, what idling costs
in CPU and memory, and how many processes a reload with one edit restarts. Exits 1 where a goal is missed.
"""

import argparse
import contextlib
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.gateway.processes import TICK, end_on_sigterm, stat_fields
from tests.bench.gateway.speed import machine
from tests.bench.gateway.targets import Target, install_python, version_of
from tests.e2e.world import World, engine
from tests.processes import command_line, free_port, is_alive
from tests.waiting import wait_until

FAKE_ENGINE = Path(__file__).resolve().parents[1] / "fake_engine.py"
PEER = Target(
    "supervisord", cmd="supervisord", version="supervisord --version", packages=("supervisor==4.3.0",)
)
RESTART_S = 0.2
CPU_PERCENT = 1.0
MEMORY_MIB = 12.0


@dataclass(frozen=True)
class Figures:
    """What one of them needed: seconds, percent of one core, MiB for each engine, processes."""

    restarts: list[float]
    cpu: float
    rss: float
    pss: float
    reload_restarted: int
    reload_s: float


@dataclass(frozen=True)
class Supervising:
    """A supervisor at work. `engines` gives the engine's pid and its parent's, by name."""

    engines: Callable[[], dict[str, tuple[int, int]]]
    supervisors: Callable[[], list[int]]
    reload: Callable[[], None]


# ---- what processes cost


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes alone: an engine is not part of what watches it."""
    return sum(int(field) for pid in pids for field in stat_fields(pid)[11:13]) / TICK


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory of one process, whole and with shared pages in proportion."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name] = int(rest.split()[0]) / 1024
    return found["Rss"], found["Pss"]


def successor(parent: int, known: set[int], port: str) -> int:
    """The child of `parent` that is not known yet and runs the engine on this port; 0 while there is none."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if int(child) not in known and f"--port {port} " in command_line(int(child)):
                return int(child)
    return 0


def restart_seconds(parent: int, pid: int) -> float:
    """From SIGKILL of the engine to the process that runs its program in its place."""
    words = command_line(pid).split()
    port = words[words.index("--port") + 1]
    siblings = set(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while not successor(parent, siblings, port):
        if time.monotonic() - begun > 30.0:
            raise SystemExit("error: the engine was not started again within 30 s")
        time.sleep(0.001)
    return time.monotonic() - begun


def measure(subject: Supervising, kills: int, seconds: float) -> Figures:
    pids = subject.supervisors()
    before, begun = cpu_seconds(pids), time.monotonic()
    time.sleep(seconds)
    cpu = 100 * (cpu_seconds(pids) - before) / (time.monotonic() - begun)
    count = len(subject.engines())
    memory = [memory_mib(pid) for pid in pids]
    found = subject.engines()
    restarts = []
    for pid, parent in list(found.values())[:kills]:
        # At any moment of the second, and after the last one is forgotten: what is just awake answers sooner.
        time.sleep(1.5 + random.random())
        restarts.append(restart_seconds(parent, pid))
    wait_until(lambda: len(subject.engines()) == count, "every engine is back")
    before_reload, begun = subject.engines(), time.monotonic()
    subject.reload()
    reload_s = time.monotonic() - begun
    after = wait_until(lambda: _all_back(subject, count), "every engine is back")
    changed = sum(before_reload[name][0] != pid for name, (pid, _) in after.items())
    rss, pss = (sum(values) / count for values in zip(*memory, strict=True))
    return Figures(restarts, cpu, rss, pss, changed, reload_s)


def _all_back(subject: Supervising, count: int) -> dict[str, tuple[int, int]]:
    found = subject.engines()
    return found if len(found) == count else {}


# ---- sage


@contextlib.contextmanager
def sage(folder: Path, count: int, watch: bool) -> Iterator[Supervising]:
    """The engines as a stack; with `watch`, beside a `sage watch`, which counts as a supervisor too."""
    name = "watched" if watch else "sage"
    world = World(folder / name, folder / name / "home")
    engines = [engine(f"e{number:02}") for number in range(count)]
    names = [f"{one['name']}#0" for one in engines]
    world.write(*engines)
    world.apply()
    world.until_ready(*names)
    watcher = world.start("watch", "sage.yaml") if watch else None
    if watcher is not None:
        watcher.says("No changes")

    def found() -> dict[str, tuple[int, int]]:
        return {name: (pids.engine, pids.supervisor) for name, pids in world.pids().items()}

    def supervisors() -> list[int]:
        return [parent for _, parent in found().values()] + ([watcher.pid] if watcher else [])

    def reload() -> None:
        engines[-1]["command"] = [*engines[-1]["command"], "--answer", "edited"]
        world.write(*engines)
        world.apply()

    try:
        yield Supervising(found, supervisors, reload)
    finally:
        world.tidy()


# ---- supervisord


def supervisord_conf(folder: Path, programs: dict[str, list[str]]) -> str:
    """Everything as it is by default, but for where its files lie."""
    places = f"logfile={folder}/supervisord.log\npidfile={folder}/supervisord.pid\nchildlogdir={folder}"
    user = "\nuser=root" if os.geteuid() == 0 else ""
    factory = "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface"
    parts = [
        f"[unix_http_server]\nfile={folder}/supervisor.sock",
        f"[supervisord]\n{places}\nnodaemon=true{user}",
        f"[rpcinterface:supervisor]\n{factory}",
        f"[supervisorctl]\nserverurl=unix://{folder}/supervisor.sock",
    ]
    parts += [f"[program:{name}]\ncommand={' '.join(command)}" for name, command in programs.items()]
    return "\n\n".join(parts) + "\n"


@contextlib.contextmanager
def supervisord(folder: Path, count: int) -> Iterator[Supervising]:
    """The same engines as programs of a supervisord."""
    home = folder / "supervisord"
    home.mkdir()
    conf = home / "supervisord.conf"
    programs = {
        f"e{number:02}": [sys.executable, str(FAKE_ENGINE), "--port", str(free_port()), "--model", "m"]
        for number in range(count)
    }
    conf.write_text(supervisord_conf(home, programs))
    program = Path(PEER.found() or "")
    with (home / "out.log").open("wb") as out:
        root = subprocess.Popen([program, "-c", conf], stdout=out, stderr=out, start_new_session=True)

    def found() -> dict[str, tuple[int, int]]:
        children = map(int, Path(f"/proc/{root.pid}/task/{root.pid}/children").read_text().split())
        lines = {child: command_line(child) for child in children if is_alive(child)}
        return {
            name: (child, root.pid)
            for name, command in programs.items()
            for child, line in lines.items()
            if f"--port {command[3]} " in line
        }

    def reload() -> None:
        programs["e00"] += ["--answer", "edited"]
        conf.write_text(supervisord_conf(home, programs))
        control = [program.with_name("supervisorctl"), "-c", conf, "update"]
        subprocess.run(control, check=True, capture_output=True)

    try:
        wait_until(lambda: len(found()) == count, "supervisord starts its programs")
        time.sleep(2.0)  # its startsecs: before that a program counts as starting
        yield Supervising(found, lambda: [root.pid], reload)
    finally:
        root.terminate()
        root.wait(60)


# ---- what is told


def row(name: str, figures: Figures) -> str:
    median, worst = statistics.median(figures.restarts), max(figures.restarts)
    return (
        f"| {name} | {median:.3f} / {worst:.3f} | {figures.cpu:.2f} | {figures.rss:.1f} | {figures.pss:.1f} "
        f"| {figures.reload_restarted} | {figures.reload_s:.1f} |"
    )


def goals(own: Figures, peer: Figures | None) -> Iterator[tuple[str, bool]]:
    worst = max(own.restarts)
    beside = ""
    if peer is not None:
        ratio = statistics.median(peer.restarts) / statistics.median(own.restarts)
        beside = f"; supervisord takes {ratio:.0f} times as long (medians)"
    yield (
        f"restart after kill -9: {worst:.3f} s at worst, goal under {RESTART_S} s{beside}",
        worst < RESTART_S,
    )
    yield f"idle CPU: {own.cpu:.2f} % of a core, goal under {CPU_PERCENT:g} %", own.cpu < CPU_PERCENT
    yield f"memory per engine: {own.rss:.1f} MiB, goal under {MEMORY_MIB:g} MiB", own.rss < MEMORY_MIB
    yield (
        f"processes restarted by one edit: {own.reload_restarted}, goal exactly 1",
        own.reload_restarted == 1,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.supervise", description=__doc__)
    parser.add_argument("--engines", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10, help="engines that are killed, one after another")
    parser.add_argument("--seconds", type=float, default=60.0, help="of idling")
    parser.add_argument("--install", action="store_true", help="install supervisord first, from PyPI")
    options = parser.parse_args(arguments)
    end_on_sigterm()
    if options.install and not PEER.is_installed():
        install_python(PEER)
    print("{cpu}, {cores} cores, Linux {kernel}; load before: {load}".format(**machine()))
    has_peer = PEER.is_installed()
    print(f"Python {platform.python_version()}, supervisord {version_of(PEER) if has_peer else 'missing'}\n")
    with tempfile.TemporaryDirectory(prefix="sage-bench-") as name:
        folder = Path(name)
        with sage(folder, options.engines, watch=False) as subject:
            own = measure(subject, options.kills, options.seconds)
        peer = None
        if has_peer:
            with supervisord(folder, options.engines) as subject:
                peer = measure(subject, options.kills, options.seconds)
        with sage(folder, options.engines, watch=True) as subject:
            watched = measure(subject, options.kills, options.seconds)
    print(
        "| | restart s, median / worst | idle CPU, % | RSS MiB | PSS MiB | restarted by an edit | reload s |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    print(row("sage", own))
    print(row("sage, with its watcher", watched))
    if peer is not None:
        print(row("supervisord", peer))
    print()
    told = list(goals(own, peer))
    for text, is_met in told:
        print(f"{'met   ' if is_met else 'MISSED'}  {text}")
    return 0 if all(is_met for _, is_met in told) else 1


if __name__ == "__main__":
    sys.exit(main())
