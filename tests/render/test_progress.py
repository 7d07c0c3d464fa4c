"""The live display of an apply in a terminal of 80 columns, and its lines elsewhere."""

import io

import pytest
from rich.console import Console

from sage_reconcile.apply.hands import Started
from sage_reconcile.model.actions import AwaitReady, Drain, Launch, Outcome, Result, Step, Stop, Verdict
from sage_reconcile.model.desired import LiveSpec
from sage_reconcile.model.observed import ObservedLaunch
from sage_reconcile.render.progress import ApplyProgress, outcome_lines
from tests.build import mark, running

OLD = running(mark("chat-with-a-rather-long-name", id="old"))
NEW = mark("chat-with-a-rather-long-name", id="new")
ORDER = Launch(NEW.replica, NEW.spec, NEW.fingerprint, NEW.placement, LiveSpec())
STEP = Step(
    "replace:chat",
    Verdict.REPLACE,
    NEW.replica,
    "model: a -> b",
    (ORDER, AwaitReady(NEW.replica, 60.0), Drain(OLD, 30.0), Stop(OLD, 30.0)),
)
STARTED = Started(NEW, 1, 0.0, "/nowhere")
LOG = "\x1b[32mINFO\x1b[0m 11-23 17:41:20 [loader.py:42] Loading safetensors shards: 50% [2/4] " * 3


def told(launch: Started | ObservedLaunch) -> str:
    return LOG


def shown(doing: str, launch: Started | ObservedLaunch | None) -> str:
    """What the terminal shows while the step does this: the last line that was drawn."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, soft_wrap=True, highlight=False)
    progress = ApplyProgress(console, told)
    with progress:
        progress.started(STEP)
        progress.acting(STEP, doing, launch)
        with console.capture() as capture:
            console.print(progress.view())
    [line] = capture.get().splitlines()
    return line


def test_name_time_and_phase_come_before_the_log() -> None:
    line = shown("waiting until it answers", STARTED)
    for word in (STEP.replica.short, "0 s", "waiting until it answers"):
        assert word in line
    assert "INFO" in line, "the rest of the line is the log's"
    assert line.rstrip().removesuffix("\x1b[0m").endswith("…")


@pytest.mark.parametrize("doing", ["draining", "stopping"])
def test_what_is_to_end_shows_no_log(doing: str) -> None:
    line = shown(doing, OLD)
    assert STEP.replica.short in line
    assert doing in line
    assert "INFO" not in line


def test_what_an_engine_said_commands_no_terminal() -> None:
    tail = ("\x1b[31mred\x1b[0m", "\x1b]0;title\x07bell\x07", "a\tb\x1b", "50%\r60%", "\x9b2J")
    lines = outcome_lines(Outcome(STEP, Result.FAILED, "said \x1b[2J\nok start other#0", 1.5, tail))
    texts = [text for _, text in lines]
    assert texts[0].endswith(": said  ok start other#0")
    assert [text.partition("| ")[2] for text in texts[1:]] == [
        "red",
        "bell\ufffd",
        "a\tb\ufffd",
        "50% 60%",
        "\ufffd2J",
    ]


def test_every_lasting_line_has_its_prefix() -> None:
    out = io.StringIO()
    with ApplyProgress(Console(file=out, width=80), told, lambda: "12:00:00  ") as progress:
        progress.started(STEP)
        progress.acting(STEP, "starting", None)
        progress.ended(Outcome(STEP, Result.FAILED, "it exited " * 20, 1.5, ("[a] line of its log",)))
    lines = out.getvalue().splitlines()
    name = STEP.replica.short
    assert lines[0] == f"12:00:00    replace {name}: starting"
    assert lines[1].startswith(f"12:00:00    failed  replace {name} after 1.5 s: it exited")
    assert lines[2] == "12:00:00            | [a] line of its log"
    assert len(lines) == 3


@pytest.mark.parametrize("term", ["dumb", "unknown", "xterm"])
def test_a_terminal_that_cannot_redraw_gets_a_line_for_each_change(term: str) -> None:
    environ = {"TERM": term, "COLUMNS": "80"}
    console = Console(file=io.StringIO(), force_terminal=True, _environ=environ, soft_wrap=True)
    with ApplyProgress(console, told) as progress, console.capture() as capture:
        progress.started(STEP)
        progress.acting(STEP, "draining", OLD)
    line = f"  replace {STEP.replica.short}: draining\n"
    assert (capture.get() == line) is (term != "xterm")
