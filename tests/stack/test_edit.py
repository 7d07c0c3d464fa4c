"""Edits of the text of a stack file: one line changes, and means what was meant."""

import difflib

import pytest

from sage_reconcile.stack.edit import CannotEdit, renamed, written
from sage_reconcile.stack.problems import Path
from sage_reconcile.stack.yamltree import parse

BLOCK = """\
# our stack
version: 1
engines:
  - name: chat   # the main one
    model: "org/model"

    # long prompts
    args:
      max-model-len: 131072   # all it has
      'enforce-eager': true

  - name: other
    model: org/other
    args: {max_model_len: 4096, dtype: float16}   # small

# the end
"""
LENGTH: Path = ("engines", 0, "args", "max-model-len")


def changed(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[:2] not in ("--", "++", "@@")]


@pytest.mark.parametrize(
    ("path", "value", "change"),
    [
        (
            LENGTH,
            14752,
            [
                "-      max-model-len: 131072   # all it has",
                "+      max-model-len: 14752   # all it has",
            ],
        ),
        (
            ("engines", 0, "args", "enforce-eager"),
            False,
            ["-      'enforce-eager': true", "+      'enforce-eager': false"],
        ),
        (("engines", 0, "args", "dtype"), "half", ["+      dtype: half"]),
        (("engines", 0, "gpu_memory"), 0.35, ["+    gpu_memory: 0.35"]),
        (("engines", 0, "health", "startup_timeout"), "20m", ["+    health: {startup_timeout: 20m}"]),
        (("engines", 0, "model"), "org/model-2", ['-    model: "org/model"', "+    model: org/model-2"]),
        (
            ("engines", 1, "args", "max_model_len"),
            2048,
            [
                "-    args: {max_model_len: 4096, dtype: float16}   # small",
                "+    args: {max_model_len: 2048, dtype: float16}   # small",
            ],
        ),
        (
            ("engines", 1, "args", "max-num-seqs"),
            64,
            [
                "-    args: {max_model_len: 4096, dtype: float16}   # small",
                "+    args: {max_model_len: 4096, dtype: float16, max-num-seqs: 64}   # small",
            ],
        ),
        (("engines", 1, "env", "TOKEN"), "${env:TOKEN}", ['+    env: {TOKEN: "${env:TOKEN}"}']),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_one_line_changes(path: Path, value: object, change: list[str], newline: str) -> None:
    before = BLOCK.replace("\n", newline)
    after = written(before, path, value)
    assert changed(before, after) == change
    assert after.count("\n") == after.count(newline)


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("engines:\n- name: a\n  args:\n", "engines:\n- name: a\n  args: {max-model-len: 5}\n"),
        (
            "engines:\n- name: a\n  args:  # none yet\n",
            "engines:\n- name: a\n  args: {max-model-len: 5}  # none yet\n",
        ),
        ("engines:\n- name: a\n  args: ~\n", "engines:\n- name: a\n  args: {max-model-len: 5}\n"),
        ("engines:\n- name: a\n  args: {}", "engines:\n- name: a\n  args: {max-model-len: 5}"),
        ("engines: [{name: a}]", "engines: [{name: a, args: {max-model-len: 5}}]"),
        ('{"engines": [{"name": "a"}]}', '{"engines": [{"name": "a", args: {max-model-len: 5}}]}'),
        (
            "engines: [\n  {name: a, # one\n   args: {x: 1 # flag\n   }},\n]\n",
            "engines: [\n  {name: a, # one\n   args: {x: 1, max-model-len: 5 # flag\n   }},\n]\n",
        ),
        ("engines:\n- name: a", "engines:\n- name: a\n  args: {max-model-len: 5}"),
        (
            "engines:\n- name: a\n  metadata:\n    about: |\n      two\n      lines\n\n- name: b\n",
            "engines:\n- name: a\n  metadata:\n    about: |\n      two\n      lines\n"
            "  args: {max-model-len: 5}\n\n- name: b\n",
        ),
        (
            "engines:\n- name: ä😀\n  args: {x: ü}\n",
            "engines:\n- name: ä😀\n  args: {x: ü, max-model-len: 5}\n",
        ),
        (
            "x: &common {max-model-len: 9}\nengines:\n- name: a\n  args: *common\n"
            "- name: b\n  args: *common\n",
            "x: &common {max-model-len: 9}\nengines:\n- name: a\n  args: {<<: *common, max-model-len: 5}\n"
            "- name: b\n  args: *common\n",
        ),
        (
            "x: &base {args: {max-model-len: 9, y: 1}}\nengines:\n- <<: *base\n  name: a\n"
            "- <<: *base\n  name: b\n",
            "x: &base {args: {max-model-len: 9, y: 1}}\nengines:\n- <<: *base\n  name: a\n"
            "  args: {max-model-len: 5, y: 1}\n- <<: *base\n  name: b\n",
        ),
        (
            "n: &n 9\nengines:\n- name: a\n  args: {max-model-len: *n}\n",
            "n: &n 9\nengines:\n- name: a\n  args: {max-model-len: 5}\n",
        ),
    ],
)
def test_however_it_is_written(text: str, after: str) -> None:
    assert written(text, LENGTH, 5) == after


def test_a_value_that_others_refer_to_is_left_to_a_person() -> None:
    text = "engines:\n- name: a\n  args: {max-model-len: &n 9}\n- name: b\n  args: {max-model-len: *n}\n"
    with pytest.raises(CannotEdit):
        written(text, LENGTH, 5)


def test_a_word_of_a_list_is_replaced() -> None:
    text = 'engines:\n- name: a\n  extra_args: ["--max-model-len", "9"]  # as before\n'
    after = written(text, ("engines", 0, "extra_args", 1), "5")
    assert after == text.replace('"9"', '"5"')


def test_a_key_is_renamed_where_it_stands() -> None:
    after = renamed(
        BLOCK.replace("max-model-len", "max-modle-len"),
        ("engines", 0, "args", "max-modle-len"),
        "max-model-len",
    )
    assert after == BLOCK


def test_what_is_written_is_text_again() -> None:
    """A value that YAML would take for something else is put in quotes."""
    for value in ("true", "12", "a: b", "x, y", "", "#no", "null", "1:30", "{port}"):
        root, faults = parse(written(BLOCK, ("engines", 0, "label"), value))
        assert not faults
        assert root is not None
        assert root.plain()["engines"][0]["label"] == value
