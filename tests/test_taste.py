"""Taste as failing tests: how large a file or a function may be, and who may import what."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path for folder in ("sage_reconcile", "gateway", "sage", ".ci") for path in (ROOT / folder).rglob("*.py")
)

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50

# A library that touches the outside has one door, so that there is one place where its faults are handled.
GATEWAYD = {f"sage_reconcile/gatewayd/{name}.py" for name in ("processes", "life", "reach", "drain")}
DOORS = {
    "pynvml": {"sage_reconcile/observe/gpus.py"},
    "psutil": {"sage_reconcile/observe/processes.py", "sage_reconcile/observe/ports.py", *GATEWAYD},
    "ray": set(),
    "torch": {"sage_reconcile/embedding/factory.py"},
    "sentence_transformers": {"sage_reconcile/embedding/factory.py"},
    "prometheus_client": {"gateway/exposition.py"},
    "huggingface_hub": {"sage_reconcile/hub.py"},
    "opentelemetry": {"gateway/spans.py"},
    "advanced_alchemy": {"gateway/sessions/tables.py", "gateway/sessions/database.py"},
    "sqlalchemy": {
        f"gateway/sessions/{name}.py" for name in ("tables", "database", "statements", "store", "turns")
    },
    "subprocess": {"sage_reconcile/supervisor/spawn.py"},
    "ruamel": {"sage_reconcile/stack/formatting.py", "sage_reconcile/observe/inventory.py"},
}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 50


def test_no_file_is_longer_than_a_person_reads_at_once() -> None:
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES}
    assert {name: lines for name, lines in long.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = {}
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name}:{node.name}"] = lines
    # Command functions list one parameter per option, with its help: that is a table, not logic.
    assert {name: lines for name, lines in long.items() if "/cli/" not in name} == {}


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_library_has_its_doors_and_no_others(library: str) -> None:
    importers = {name for name, tree in trees() if library in imported(tree) and not name.startswith(".ci/")}
    assert importers <= DOORS[library]


def test_only_the_command_line_and_the_renderers_print() -> None:
    allowed = ("sage_reconcile/cli/", "sage_reconcile/render/", ".ci/")
    printers = [
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if not name.startswith(allowed)
    ]
    assert printers == []


def test_no_todo_without_an_issue() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "X" + "XX")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(mark in line for mark in marks) and "#" not in line.partition(marks[0])[2]
    ]
    assert found == []


# Who may ask what time it is: for stamps that people read and records carry. Durations are monotonic.
STAMPS = {
    "sage_reconcile/supervisor/supervise.py",
    "sage_reconcile/supervisor/exits.py",
    "sage_reconcile/supervisor/journal.py",
    "sage_reconcile/doctor/examine.py",
    "sage_reconcile/observe/look.py",
    "sage_reconcile/apply/local.py",
    "sage_reconcile/embedding/app.py",
    "sage_reconcile/cli/gatewaystatus.py",
    "sage_reconcile/applying.py",
    "sage_reconcile/management/operations.py",
    "gateway/events.py",
    "gateway/master.py",
    "gateway/accounts.py",
    "gateway/source.py",
    "sage_reconcile/runtimes/build.py",
    "sage_reconcile/converge.py",
    "sage_reconcile/cli/watch.py",
    "sage_reconcile/cli/lease.py",
    # When an engine on demand was used last, which the planner compares with the time of its look: a clock
    # that is set forward lets it sleep early, and the next request wakes it.
    "gateway/demand.py",
}


def test_the_wall_clock_gives_stamps_and_no_durations() -> None:
    """A clock that is set must not make anything wait, give up or forget."""
    askers = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in (("time", "time"), ("time", "time_ns"), ("datetime", "now"))
        and not name.startswith(".ci/")
    }
    assert askers <= STAMPS
