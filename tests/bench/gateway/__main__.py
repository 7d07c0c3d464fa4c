"""Measures OpenAI gateways side by side on this machine. `make bench-gateway` runs it.

    python -m tests.bench.gateway                             every target of targets.toml that is installed
    python -m tests.bench.gateway --install                   installs those that are missing first
    python -m tests.bench.gateway --only sage,vllm-router     some of them
    python -m tests.bench.gateway --target 'name=mine;cmd=mygateway --port {port} --upstream {upstream}'

Each target runs on the first core, the fake model server and the load on the last. They are measured in turns
(A B C A B C ...), a fresh process each time, and medians over the turns are told. A turn: start it, wait for
its first answer, warm up; then the phases

    json     POST, short JSON answer, 32 connections as fast as they go
    single   the same over one connection: the latency that a request gains
    stream   64-event streams that come without pause, 32 connections
    paced    200 streams of 50 events a second each, as from model servers

docs/benchmarks.md says what the columns mean. Exits 1 where a goal is missed or a target cannot be measured.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.gateway import report
from tests.bench.gateway.processes import BenchError, end_on_sigterm, raise_file_limit
from tests.bench.gateway.sage_target import MODEL
from tests.bench.gateway.speed import machine
from tests.bench.gateway.targets import (
    DIRECT,
    TARGETS,
    Target,
    install,
    load_targets,
    parse_target,
    version_of,
)
from tests.bench.gateway.turn import PHASES, Bench, Result
from tests.bench.gateway.world import KEY


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--targets", action="append", type=Path, help="TOML of targets (default: targets.toml)")
    add("--target", action="append", default=[], type=parse_target, help="name=..;cmd=..[;ready=..]")
    add("--only", default="", help="names, with commas between them")
    add("--skip", default="", help="names, with commas between them")
    add("--install", action="store_true", help="install what is missing of them, from PyPI and Debian")
    add("--phases", default=",".join(PHASES))
    add("--repeats", type=int, default=3)
    add("--seconds", type=float, default=4, help="of a phase")
    add("--warmup", type=float, default=2)
    add("--settle", type=float, default=8, help="seconds to wait for a fast core, at most")
    add("--connections", type=int, default=32)
    add("--streams", type=int, default=200, help="paced streams at once")
    add("--delay-ms", type=float, default=20, help="between two of their events")
    add("--burst", type=int, default=8, help="events per write of an unpaced stream")
    add("--upstreams", type=int, default=1)
    add("--prompt-bytes", type=int, default=1000)
    add("--model", default=MODEL)
    add("--key", default=KEY, help="the API key that every request brings")
    add("--json", type=Path, help="write the results to this file, after every turn")
    options = parser.parse_args(arguments)
    options.phases = [phase for phase in options.phases.split(",") if phase]
    if set(options.phases) - set(PHASES):
        parser.error(f"the phases are {', '.join(PHASES)}")
    return options


def chosen(options: argparse.Namespace) -> list[Target]:
    """The targets asked for, the upstream itself first. Exits if there is none of that name."""
    targets = [DIRECT]
    for path in options.targets or [TARGETS]:
        targets += load_targets(path)
    targets += options.target
    only, skip = (set(filter(None, names.split(","))) for names in (options.only, options.skip))
    if unknown := (only | skip) - {target.name for target in targets}:
        raise SystemExit(f"error: no such target: {', '.join(sorted(unknown))}")
    if only:
        only |= {DIRECT.name, *(target.name for target in options.target)}
        targets = [target for target in targets if target.name in only]
    return [target for target in targets if target.name not in skip]


def installed(targets: Sequence[Target]) -> list[Target]:
    """Those that can be started; the others are told."""
    found = []
    for target in targets:
        if target.is_installed():
            found.append(target)
        else:
            print(f"{target.name}: {target.program} is not installed, left out", file=sys.stderr)
    return found


def measure(bench: Bench, targets: Sequence[Target], options: argparse.Namespace) -> tuple[Result, int]:
    """All turns and their medians, and how many turns failed."""
    turns: dict[str, list[Result]] = {target.name: [] for target in targets}
    versions = {target.name: told for target in targets if (told := version_of(target))}
    full: Result = {"machine": machine(), "versions": versions, "turns": turns}
    failed = 0
    for repeat in range(options.repeats):
        for target in targets:
            print(f"turn {repeat + 1}/{options.repeats}: {target.name}", file=sys.stderr)
            try:
                turns[target.name].append(bench.turn(target))
            except (BenchError, OSError, subprocess.SubprocessError) as error:
                failed += 1
                print(f"{target.name}: {error}", file=sys.stderr)
            report.normalise(turns, bench.speed.best)
            full["best_work_s"] = bench.speed.best
            full["medians"] = {name: report.medians(found) for name, found in turns.items() if found}
            if options.json:
                options.json.write_text(json.dumps(full, indent=1) + "\n")
    return full, failed


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    end_on_sigterm()
    raise_file_limit()
    targets = chosen(options)
    if options.install:
        install(targets)
    if not shutil.which("wrk"):
        raise SystemExit("error: wrk is not installed; on Debian: apt-get install wrk")
    targets = installed(targets)
    with tempfile.TemporaryDirectory(prefix="sage-bench-") as folder:
        Path(folder).chmod(0o755)
        full, failed = measure(Bench(options, Path(folder)), targets, options)
    print(
        "{cpu}, {cores} cores, Linux {kernel}, Python {python}; load before: {load}".format(**full["machine"])
    )
    print(", ".join(f"{name} {text}" for name, text in full["versions"].items()), end="\n\n")
    print(report.table(full["medians"]), end="\n\n")
    told, is_met = report.goals(full["medians"])
    print(told)
    return 0 if is_met and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
