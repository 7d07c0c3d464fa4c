"""Progress of an apply: one live line per engine on a terminal that can redraw, plain lines elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from sage_reconcile.apply.hands import Started
from sage_reconcile.model.actions import Drain, Outcome, Result, Step, Stop
from sage_reconcile.model.observed import ObservedLaunch
from sage_reconcile.render.clean import one_line

LastLine = Callable[[Started | ObservedLaunch], str]

SIGNS = {
    Result.DONE: ("ok", "green"),
    Result.FAILED: ("failed", "red"),
    Result.SKIPPED: ("skipped", "yellow"),
}


class ApplyProgress:
    """Shows what happens. Use as a context manager; on a terminal it redraws ten times a second."""

    def __init__(self, console: Console, last_line: LastLine, prefix: Callable[[], str] = str) -> None:
        """`prefix` gives what every lasting line begins with, a time for example."""
        self._console = console
        self._prefix = prefix
        self._last_line = last_line
        self._running: dict[str, _Row] = {}
        self._live: Live | None = None
        self._is_mute = False

    def __enter__(self) -> "ApplyProgress":
        if can_redraw(self._console):
            self._live = Live(
                console=self._console, refresh_per_second=10, get_renderable=self.view, transient=True
            )
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def started(self, step: Step) -> None:
        self._running[step.id] = _Row(step)

    def acting(self, step: Step, doing: str, launch: Started | ObservedLaunch | None) -> None:
        row = self._running.get(step.id)
        if row is not None:
            row.doing = doing
            row.launch = None if launch is None or _is_to_end(step, launch) else launch
        if self._live is None:
            self._print(f"  {step.verdict} {step.replica.short}: {doing}")

    def ended(self, outcome: Outcome) -> None:
        self._running.pop(outcome.step.id, None)
        for style, text in outcome_lines(outcome):
            self._print(text, style)

    def _print(self, text: str, style: str = "") -> None:
        if self._is_mute:
            return
        try:
            self._console.print(Text.assemble(self._prefix(), (text, style)), soft_wrap=True)
        except OSError:
            # The reader has left, or the disk is full: no reason to leave an apply half done.
            self._is_mute = True

    def view(self) -> Table:
        """What a terminal shows now: one line for each step that runs."""
        # The width of the terminal goes to name, time and phase; the log line gets what is left of it.
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=2)
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1, style="dim")
        for row in list(self._running.values()):
            line = self._last_line(row.launch) if row.launch is not None else ""
            elapsed = f"{time.monotonic() - row.begin:.0f} s"
            log = one_line(line)
            table.add_row(row.spinner, *map(Text, (row.step.replica.short, elapsed, row.doing, log)))
        return table


def _is_to_end(step: Step, launch: Started | ObservedLaunch) -> bool:
    """Whether the step ends this launch: what that one still logs tells nothing about the progress."""
    return any(isinstance(action, Drain | Stop) and action.launch == launch for action in step.actions)


def can_redraw(console: Console) -> bool:
    """Whether it is a terminal that moves its cursor; TERM=dumb is one that does not."""
    return console.is_terminal and not console.is_dumb_terminal


class _Row:
    def __init__(self, step: Step) -> None:
        self.step = step
        self.begin = time.monotonic()
        self.doing = ""
        self.launch: Started | ObservedLaunch | None = None
        self.spinner = Spinner("dots")


def outcome_lines(outcome: Outcome) -> list[tuple[str, str]]:
    """How a step ended: one line, and the last log lines where an engine failed."""
    word, style = SIGNS[outcome.result]
    step = outcome.step
    took = f" after {outcome.seconds:.1f} s" if outcome.seconds else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    lines = [(style, f"  {word:<7} {step.verdict} {step.replica.short}{took}{reason}")]
    lines += [("dim", f"          | {line}") for line in outcome.tail[-12:]]
    return [(style, one_line(line)) for style, line in lines]
