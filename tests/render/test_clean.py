"""Texts of strangers on a terminal: no escape of theirs reaches it, and plans keep their lines."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_reconcile.model.actions import Launch, Plan, Step, Verdict
from sage_reconcile.model.desired import LiveSpec
from sage_reconcile.render import clean
from sage_reconcile.render.plan_text import plan_lines
from tests.build import mark


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("50%\r\n60%\r70%\n", "50%\n60%\n70%\n"),
        ("\x1b[1;31mred\x1b[0m\tand é, 中", "red\tand é, 中"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x1bc reset", "\ufffdc reset"),
        ("abc\u202edef", "abc\ufffddef"),
    ],
)
def test_a_log_keeps_its_lines_and_loses_its_commands(text: str, shown: str) -> None:
    assert clean.lines(text) == shown


@given(st.text())
def test_nothing_commands_a_terminal(text: str) -> None:
    assert all(c == "\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) for c in clean.one_line(text))


def test_a_model_name_forges_no_line_of_a_plan() -> None:
    new = mark("a", id="new")
    spec = replace(new.spec, model="m\x1b[2K\r  - stop all")
    order = Launch(new.replica, spec, new.fingerprint, new.placement, LiveSpec())
    step = Step("start:a", Verdict.START, new.replica, "because\nof \x1b]0;x\x07", (order,))
    texts = [text for _, text in plan_lines(Plan("demo", steps=(step,)))]
    assert not any(set(text) & set("\x1b\r\n\x07") for text in texts)
    assert any("m   - stop all" in text for text in texts)
