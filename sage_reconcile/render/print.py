"""Printing of plans: the same text on a terminal, in a pipe and in CI."""

import json
import os

from rich.console import Console
from rich.text import Text

from sage_reconcile.model.actions import Plan
from sage_reconcile.render.plan_data import plan_data, plan_markdown
from sage_reconcile.render.plan_text import plan_lines

MIN_WIDTH = 24
WIDTH = 80
"""Of a terminal that does not know its own: some say 0."""


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would end the process here, in the middle of an apply


def console() -> Console:
    """Where results go; never wraps, so that lines can be searched and compared."""
    console = _Output(soft_wrap=True, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 250  # tables are cut to the width; in a pipe there is none
    elif console.width < MIN_WIDTH:
        console.width = WIDTH
    return console


def print_plan(plan: Plan, format: str) -> None:
    """`format` is text, json or markdown."""
    out = console()
    if format == "json":
        out.out(json.dumps(plan_data(plan), indent=2), highlight=False)
    elif format == "markdown":
        out.out(plan_markdown(plan), highlight=False)
    else:
        for style, text in plan_lines(plan):
            out.print(Text(text, style=style))


def print_json(data: object) -> None:
    console().out(json.dumps(data, indent=2), highlight=False)
