"""Golden plans: a stack and what runs, and the plan that a person would review, compared to the letter.

Each folder holds stack.yaml, observed.py (a function `observed(desired)`) and plan.txt. Run with
SAGE_UPDATE_GOLDEN=1 to write plan.txt anew, then read the difference before committing it.
"""

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from sage_reconcile.converge import plan_for
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.render.plan_data import plan_markdown
from sage_reconcile.render.plan_text import plan_lines
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve

HERE = Path(__file__).parent
SCENARIOS = sorted(path.parent.name for path in HERE.glob("*/stack.yaml"))


def planned(name: str) -> str:
    """The text that `sage plan` prints, and the Markdown under a line."""
    folder = HERE / name
    desired = resolve(load([folder / "stack.yaml"], {}, portable=True))
    observed = cast(
        Callable[[DesiredState], ObservedState], runpy.run_path(str(folder / "observed.py"))["observed"]
    )
    plan = plan_for(desired, observed(desired)).plan
    text = "\n".join(line for _, line in plan_lines(plan))
    return f"{text}\n\n{'=' * 80}\n\n{plan_markdown(plan)}\n"


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_plan_is_the_golden_one(name: str) -> None:
    golden = HERE / name / "plan.txt"
    text = planned(name)
    if os.environ.get("SAGE_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text
    assert planned(name) == text


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 8
