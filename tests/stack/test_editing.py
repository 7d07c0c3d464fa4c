"""Edits of a stack file's text: what was not meant stays, letter for letter."""

import pytest
import yaml

from sage_reconcile.errors import PermanentError
from sage_reconcile.stack.editing import engines_of, with_engine, without_engine

TEXT = """\
# head
version: 1
name: adhoc
engines:
  # about a
  - name: a
    model: x  # why
    args: {k: 1}
  # about b
  - name: b
    model: y
    # inside b

# the end
gateway: {port: 8000}
"""


def test_a_new_engine_comes_last_and_moves_no_comment() -> None:
    text = with_engine(TEXT, "f", {"name": "c", "model": "m", "args": {"k": "1"}})
    added = '\n  - name: c\n    model: m\n    args:\n      k: "1"\n'
    assert text == TEXT.replace("    # inside b\n", "    # inside b\n" + added)


def test_a_known_engine_is_changed_where_it_stands() -> None:
    text = with_engine(TEXT, "f", {"name": "a", "args": {"z": 2}, "label": "l"})
    assert text == TEXT.replace("args: {k: 1}", "args: {k: 1, z: 2}\n    label: l")
    plain = TEXT.replace("    args: {k: 1}\n", "")
    stopped = with_engine(plain, "f", {"name": "a", "state": "stopped"})
    assert stopped == plain.replace("# why\n", "# why\n    state: stopped\n")
    running = with_engine(stopped, "f", {"name": "a", "state": "running"})
    assert running == stopped.replace("stopped", "running")
    indented = TEXT.replace("\n  ", "\n")
    assert "  args: {k: 1}\n  label: l\n# about b\n" in with_engine(
        indented, "f", {"name": "a", "label": "l"}
    )


def test_an_engine_goes_with_what_is_said_of_it() -> None:
    without_a = without_engine(TEXT, "f", "a")
    assert without_a == TEXT.replace("  # about a\n  - name: a\n    model: x  # why\n    args: {k: 1}\n", "")
    nothing = without_engine(without_a, "f", "b")
    assert nothing == "# head\nversion: 1\nname: adhoc\nengines: []\n\n# the end\ngateway: {port: 8000}\n"
    again = with_engine(nothing, "f", {"name": "c", "model": "m"})
    assert engines_of(again) == [{"name": "c", "model": "m"}]
    assert "engines:\n  - name: c\n    model: m\n" in again


def test_one_line_of_engines_can_be_edited() -> None:
    text = "engines: [{name: a, model: x}, {name: b, model: y}]  # all\n"
    assert engines_of(without_engine(text, "f", "a")) == [{"name": "b", "model": "y"}]
    longer = with_engine(text, "f", {"name": "c", "model": "z"})
    assert [one["name"] for one in yaml.safe_load(longer)["engines"]] == ["a", "b", "c"]


def test_what_others_refer_to_is_not_changed() -> None:
    first = "  - name: a\n    model: x\n    env: &e {A: '1'}\n"
    text = f"engines:\n{first}  - name: b\n    model: y\n    env: *e\n"
    with pytest.raises(PermanentError, match="edit it by hand"):
        with_engine(text, "f", {"name": "a", "env": {"A": "2"}})
