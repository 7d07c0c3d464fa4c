"""The README's stack is the preset, and its plans are what the planner says now."""

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from sage_reconcile.home import Home
from sage_reconcile.model.actions import Launch, Plan
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.observed import Health, Mark, ObservedLaunch, ObservedNode, ObservedState
from sage_reconcile.plan import learning
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.render.plan_text import plan_lines
from sage_reconcile.route.table import routing_table
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve
from tests.docs.pages import ROOT, block, text_of

STACK = ROOT / "stacks" / "quickstart.yaml"
NODE = "lab"


def text(plan: Plan) -> str:
    return "".join(f"{line}\n" for _, line in plan_lines(plan))


def desired(path: Path) -> DesiredState:
    return resolve(load([path], {}, (), portable=True))


def empty_host() -> ObservedState:
    return ObservedState(at=0.0, nodes=(ObservedNode(NODE),))


def applied(state: DesiredState, home: Home) -> ObservedState:
    """What there is to see once the whole stack was applied on an empty host."""
    launches = []
    for step in reconcile(state, empty_host()).steps:
        [order] = [action for action in step.actions if isinstance(action, Launch)]
        mark = Mark(
            str(home.root),
            order.replica,
            order.fingerprint,
            "l1",
            order.spec,
            order.placement,
            order.spec.model,
        )
        launches.append(ObservedLaunch(mark, Health.READY, 1, 0.0, ready_at=0.0, live=order.live))
    seen = ObservedState(at=0.0, nodes=(ObservedNode(NODE),), launches=tuple(launches))
    return replace(seen, routing=routing_table(state, seen), facts=measured(seen))


def measured(seen: ObservedState) -> tuple[Fact, ...]:
    """What that apply has measured: here it took 23 s."""
    marks = [launch.mark for launch in seen.launches]
    blanks = [blank for mark in marks if (blank := learning.blank(mark, (), 0.0))]
    return tuple(replace(fact, start_seconds=22.9, stop_seconds=0.1) for fact in blanks)


def patched(source: str, diff: str) -> str:
    """`source` with the lines that `diff` adds, each after the lines that stand before it there."""
    lines, at = source.splitlines(), 0
    for line in diff.splitlines():
        if line.startswith("+"):
            lines.insert(at, line[1:])
        else:
            at = lines.index(line[1:], at)
        at += 1
    return "\n".join(lines) + "\n"


def test_the_stack_is_the_preset() -> None:
    assert block("README.md", "stack: stacks/quickstart.yaml") == STACK.read_text(encoding="utf-8")


def test_the_plan_is_what_the_planner_says() -> None:
    shown = block("README.md", "plan: stacks/quickstart.yaml")
    assert shown == text(reconcile(desired(STACK), empty_host()))


def test_the_plan_is_what_the_command_prints(tmp_path: Path) -> None:
    """But for the host's name and for ports, which others may hold here."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    for name in ("transformers", "sentence-transformers"):
        python = tmp_path / "home" / "runtimes" / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
    done = subprocess.run(
        [sys.executable, "-m", "sage_reconcile.cli.main", "plan", "stacks/quickstart.yaml"],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), "SAGE_HOME": str(tmp_path / "home"), "SAGE_DISABLE_NVML": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = block("README.md", "plan: stacks/quickstart.yaml")
    printed = done.stdout.replace(f" on {socket.gethostname()}, ", f" on {NODE}, ")
    assert _without_ports(printed) == _without_ports(shown)


def _without_ports(plan: str) -> str:
    return re.sub(r"port \d+", "port N", plan)


def test_the_plan_of_the_edit_is_what_the_planner_says(tmp_path: Path) -> None:
    before = desired(STACK)
    edit = block("README.md", "edit: stacks/quickstart.yaml")
    edited = tmp_path / "quickstart.yaml"
    edited.write_text(patched(STACK.read_text(encoding="utf-8"), edit), encoding="utf-8")
    plan = reconcile(desired(edited), applied(before, Home(tmp_path / "home")))
    assert block("README.md", "plan: after the edit") == text(plan)


def test_planning_again_says_what_the_readme_says(tmp_path: Path) -> None:
    state = desired(STACK)
    plan = reconcile(state, applied(state, Home(tmp_path / "home")))
    assert f"`{text(plan).splitlines()[-1]}`" in text_of("README.md")


def test_the_plan_of_a_switch_is_the_golden_one() -> None:
    golden = (ROOT / "tests" / "scenarios" / "on_demand" / "plan.txt").read_text(encoding="utf-8")
    assert block("docs/on-demand.md", "plan: on demand") == golden.partition("\n\n===")[0] + "\n"
