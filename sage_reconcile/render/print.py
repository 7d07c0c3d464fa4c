"""Printing of plans: the same text on a terminal, in a pipe and in CI."""

import json
import os

from rich.console import Console
from rich.text import Text

from sage_reconcile.model.actions import Plan
from sage_reconcile.plan.explanation import Explanation
from sage_reconcile.render.explanation import explanation_data, explanation_lines
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


def print_plan(plan: Plan, format: str, said: Explanation | None = None) -> None:
    """`format` is text, json or markdown; `said` explains one engine of the plan after it."""
    out = console()
    if format == "json":
        data = plan_data(plan) | ({"explain": explanation_data(said)} if said else {})
        out.out(json.dumps(data, indent=2), highlight=False)
        return
    explained = explanation_lines(said) if said else []
    if format == "markdown":
        out.out(plan_markdown(plan), highlight=False)
        if said:
            text = "\n".join(line for _, line in explained[1:])
            out.out(f"\n```text\n{text}\n```", highlight=False)
        return
    for style, text in [*plan_lines(plan), *explained]:
        out.print(Text(text, style=style))


def print_json(data: object) -> None:
    console().out(json.dumps(data, indent=2), highlight=False)
