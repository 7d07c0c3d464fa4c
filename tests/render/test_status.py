"""`sage status` beside engines of others."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from sage_reconcile.model.observed import Demand, ForeignLaunch, GpuHolder, Health, ObservedState
from sage_reconcile.model.routing import Route, RoutingTable
from sage_reconcile.render.gpus import CELLS, gpus_view
from sage_reconcile.render.status import status_data, status_view
from tests.build import GIB, NOW, gpu, mark, node, observed, running, spec


def text(count: int, shows_foreign: bool) -> str:
    others = [mark(f"other-{number}", home="/somebody/else") for number in range(count)]
    foreign = tuple(ForeignLaunch(one, (7,), "somebody") for one in others)
    console = Console(file=io.StringIO(), width=250)
    with console.capture() as capture:
        console.print(status_view(replace(observed(), foreign=foreign), {}, shows_foreign))
    return capture.get()


@pytest.mark.parametrize(
    ("count", "line"),
    [
        (1, "1 engine of another SAGE_HOME runs here; --all shows it"),
        (3, "3 engines of other SAGE_HOMEs run here; --all shows them"),
    ],
)
def test_engines_of_others_are_one_line(count: int, line: str) -> None:
    said = text(count, shows_foreign=False)
    assert line in said.splitlines()
    assert "other-0" not in said


def test_all_names_them() -> None:
    said = text(2, shows_foreign=True)
    assert "another SAGE_HOME: demo/other-0#0 (somebody, /somebody/else) on port 8901" in said
    assert "other-1" in said
    assert "--all" not in said


def test_without_others_nothing_is_said_of_them() -> None:
    assert "SAGE_HOMEs" not in text(0, shows_foreign=False)


@pytest.mark.parametrize("width", [24, 40, 59, 80])
def test_in_a_narrow_terminal_nothing_is_cut(width: int) -> None:
    """What does not fit beside each other is written below each other."""
    engines = [running(mark("chat")), running(mark("an-embedding-engine-with-a-name", id="l2"))]
    console = Console(file=io.StringIO(), width=width)
    drift = {"demo/chat#0": "replace: model: a -> b"}
    with console.capture() as capture:
        console.print(status_view(observed(*engines, nodes=[node("n1", 1)]), drift, False), soft_wrap=False)
    said = capture.get()
    assert "…" not in said
    assert all(len(line) <= width for line in said.splitlines())
    words = " ".join(said.split())
    for part in ("ready", "command", "8901", "replace: model: a -> b", "H100", "81,920"):
        assert part in words
    assert "demo/chat#0  ready\n" in said


def test_a_wide_terminal_has_a_table() -> None:
    console = Console(file=io.StringIO(), width=250)
    with console.capture() as capture:
        console.print(status_view(observed(running(mark("chat"))), {}, False), soft_wrap=False)
    assert capture.get().startswith("ENGINE")


def test_engines_on_demand_are_told_with_and_without_a_process() -> None:
    names = ("chat", "other")
    routes = tuple(Route(name, "llm", (), stack="demo", on_demand=name) for name in names)
    asked = (Demand("demo", "chat", last=NOW - 300), Demand("demo", "other", last=NOW - 90))
    state = replace(
        observed(running(mark("chat"), Health.ASLEEP)), routing=RoutingTable(routes), demand=asked
    )
    console = Console(file=io.StringIO(), width=250)
    with console.capture() as capture:
        console.print(status_view(state, {}, False))
    lines = [line for line in capture.get().splitlines() if line.startswith("demo/")]
    assert "asleep, asked 5 min ago" in lines[0]
    assert "demo/other" in lines[1]
    assert "on demand, asked 90 s ago" in lines[1]
    data = status_data(state)
    assert (data["engines"][0]["on_demand"], data["engines"][0]["asked_seconds_ago"]) == (True, 300.0)
    told = {"engine": "other", "stack": "demo", "state": "on demand"}
    assert data["on_demand"] == [told | {"on_demand": True, "asked_seconds_ago": 90.0}]


def shown(state: ObservedState, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(gpus_view(state), soft_wrap=False)
    return capture.get()


def crowded() -> ObservedState:
    holders = (
        GpuHolder(4001, "engine", 20 * GIB),
        GpuHolder(99, "Xorg", 10 * GIB),
        GpuHolder(7, "", 10 * GIB),
    )
    busy = replace(gpu(0, used=40 * GIB), holders=holders)
    return observed(
        running(mark("chat", spec(need=30 * GIB)), held=20 * GIB), nodes=[node(gpus=[busy, gpu(1)])]
    )


def test_each_gpu_has_a_bar_with_the_owner_of_every_byte() -> None:
    lines = shown(crowded()).splitlines()
    (bar,) = [line for line in lines if line.startswith("  [")]
    cells = bar.strip().strip("[]")
    assert len(cells) == CELLS
    assert {sign: cells.count(sign) for sign in "█▒#?·"} == {"█": 15, "▒": 7, "#": 8, "?": 8, "·": 22}
    assert "  █ demo/chat#0: 20,480 MiB, ▒ 10,240 more counted" in lines
    assert "  # Xorg, not ours (process 99): 10,240 MiB" in lines
    assert "  ? unattributed (no process is seen that holds it): 10,240 MiB" in lines
    assert "  · free: 30,720 MiB" in lines
    assert "n1 1" not in lines


@pytest.mark.parametrize("width", [24, 40, 79])
def test_bars_fit_into_a_narrow_terminal(width: int) -> None:
    assert all(len(line) <= width for line in shown(crowded(), width).splitlines())


def test_the_numbers_are_the_same_in_json_and_add_up() -> None:
    first, second = status_data(crowded())["gpus"]
    assert [(owner["owner"], owner["mib"], owner["reserved_mib"]) for owner in first["owners"]] == [
        ("launch", 20 * GIB, 10 * GIB),
        ("foreign", 10 * GIB, 0),
        ("unattributed", 10 * GIB, 0),
        ("free", 30 * GIB, 0),
    ]
    for data in (first, second):
        assert sum(o["mib"] + o["reserved_mib"] for o in data["owners"]) == data["memory_total_mib"]
