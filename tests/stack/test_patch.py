"""Fixes as changed files: which file, only that engine, and nothing where a person has to decide."""

from pathlib import Path

import pytest

from sage_reconcile.errors import PermanentError
from sage_reconcile.model.fixes import Edit, Fix
from sage_reconcile.stack.load import from_document, load
from sage_reconcile.stack.patch import Patch, Patcher
from sage_reconcile.stack.resolve import resolve

BASE = """\
defaults:
  args: {max_model_len: 32768}
  extra_args: ["--seed", "1"]
engines:
  - name: a
    model: org/a   # first
    gpus: 2
    tensor_parallel: 2
  - name: b
    model: org/b
"""
LENGTH = Edit(("args", "max-model-len"), 4096)


class Files:
    """Stack files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []

    def add(self, text: str, name: str = "") -> Path:
        path = self.folder / (name or f"{len(self.paths)}.yaml")
        path.write_bytes(text.encode())
        if not name:
            self.paths.append(path)
        return path

    def patcher(self, *sets: str) -> Patcher:
        return Patcher(load(self.paths, {}, sets), {}, sets)

    def patched(self, *edits: Edit, engine: str = "a", sets: tuple[str, ...] = ()) -> Patch:
        patcher = self.patcher(*sets)
        patcher.add(Fix(engine, "cause", "why", edits))
        [patch] = patcher.patches
        return patch

    def refused(self, *edits: Edit, sets: tuple[str, ...] = ()) -> str:
        patcher = self.patcher(*sets)
        with pytest.raises(PermanentError) as caught:
            patcher.add(Fix("a", "cause", "why", edits))
        assert patcher.patches == ()
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_no_other_engine_changes(files: Files) -> None:
    """A value from defaults is overridden in the engine, spelled as there."""
    path = files.add(BASE)
    before = resolve(load([path], {})).engine("b")
    patch = files.patched(LENGTH)
    assert patch.after == BASE.replace(
        "    tensor_parallel: 2\n", "    tensor_parallel: 2\n    args: {max_model_len: 4096}\n"
    )
    [change] = patch.changes
    assert (change.line, change.path, change.before, change.after) == (9, "args.max_model_len", 32768, 4096)
    path.write_text(patch.after)
    after = resolve(load([path], {}))
    assert after.engine("b") == before
    wanted = after.engine("a")
    assert wanted is not None
    assert dict(wanted.launch.args) == {"max-model-len": 4096}


def test_the_file_that_gives_the_value_is_edited(files: Files) -> None:
    files.add(BASE.replace("gpus: 2", "gpu_memory: 0.5"))
    over = files.add("engines: [{name: a, args: {max_model_len: 9000}}]\n")
    assert files.patched(LENGTH).path == str(over)
    assert files.patched(Edit(("gpu_memory",), 0.4)).path == str(files.paths[0])


def test_a_new_value_goes_into_the_last_file_that_has_the_engine(files: Files) -> None:
    base = files.add(BASE, "base.yaml")
    files.add("include: [base.yaml]\nengines: [{name: b, label: x}]\n")
    assert files.patched(Edit(("label",), "y")).path == str(base)
    assert files.patched(Edit(("gpu_memory",), 0.4), engine="b").path == str(files.paths[0])


def test_a_word_from_defaults_becomes_a_list_of_the_engine(files: Files) -> None:
    files.add(BASE)
    patch = files.patched(Edit(("extra_args", 1), "2"))
    assert '    extra_args: ["--seed", "2"]\n' in patch.after


def test_several_edits_are_taken_as_a_whole(files: Files) -> None:
    files.add("\ufeff" + BASE)
    patch = files.patched(LENGTH, Edit(("gpu_memory",), 0.4))
    assert patch.after.startswith("\ufeffdefaults")
    assert len(patch.changes) == 2
    text = files.refused(LENGTH, Edit(("tensor_parallel",), 1))
    assert "with it the file would have a fault: engines[0].gpus: 2 GPUs per replica" in text


def test_two_engines_in_one_file(files: Files) -> None:
    files.add(BASE)
    patcher = files.patcher()
    for engine in ("a", "b"):
        patcher.add(Fix(engine, "cause", "why", (LENGTH,)))
    [patch] = patcher.patches
    assert patch.before == BASE
    assert patch.after.count("max_model_len: 4096") == 2
    assert patch.diff.count("\n+    args:") == 2


@pytest.mark.parametrize("given", ["engines.a.args.max_model_len=7", "engines.a.args={max-model-len: 7}"])
def test_what_set_gives_is_not_in_a_file(files: Files, given: str) -> None:
    files.add(BASE.replace("  args: {max_model_len: 32768}\n", ""))
    assert "wins over the file" in files.refused(LENGTH, sets=(given,))


def test_a_file_that_was_saved_since_is_left_alone(files: Files) -> None:
    path = files.add(BASE)
    patcher = files.patcher()
    path.write_text(BASE.replace("# first", "# one"))
    with pytest.raises(PermanentError, match="was changed since it was applied"):
        patcher.add(Fix("a", "cause", "why", (LENGTH,)))


def test_a_stored_plan_has_no_file(files: Files) -> None:
    stack = load([files.add(BASE)], {})
    stored = from_document(stack.document, stack.base, "x", {})
    with pytest.raises(PermanentError, match="stored plan"):
        Patcher(stored, {}).add(Fix("a", "cause", "why", (LENGTH,)))


def test_what_is_so_already_is_no_fix(files: Files) -> None:
    files.add(BASE.replace("# first", "\n    args: {max_model_len: 4096}"))
    assert "is 4096 already" in files.refused(LENGTH)
