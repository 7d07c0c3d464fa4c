"""Versions of engine programs in the stack file."""

import hashlib
from pathlib import Path

import pytest

from sage_reconcile.errors import StackError
from sage_reconcile.model import codec
from sage_reconcile.model.desired import DesiredEngine, Program
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve

ENGINE = "engines: [{name: a, model: org/m, use_gpu: false}]\n"


def engine(folder: Path, runtimes: str, *more: str, sets: tuple[str, ...] = ()) -> DesiredEngine:
    """The engine of a stack with these `runtimes`; `more` are laid over it."""
    paths = []
    for number, text in enumerate([f"runtimes: {runtimes}\n{ENGINE}", *more]):
        paths.append(folder / f"{number}.yaml")
        paths[-1].write_text(text)
    [found] = resolve(load(paths, {}, sets)).engines
    return found


def faults(folder: Path, runtimes: str) -> str:
    with pytest.raises(StackError) as caught:
        engine(folder, runtimes)
    return str(caught.value)


@pytest.mark.parametrize(
    "runtimes", ['{vllm: "0.24.0"}', '{vllm: {version: "0.24.0"}}', '{vllm: {kind: vllm, version: "0.24.0"}}']
)
def test_the_short_form_is_the_long_one(tmp_path: Path, runtimes: str) -> None:
    launch = engine(tmp_path, runtimes).launch
    assert launch.program == Program("0.24.0")
    assert launch.python is None


def test_all_of_it(tmp_path: Path) -> None:
    text = (
        '{vllm: {version: "0.24.0", python: "3.12", with: ["flash-attn==2.8", hf_transfer], index: ./wheels}}'
    )
    program = engine(tmp_path, text).launch.program
    assert program == Program("0.24.0", "3.12", ("flash-attn==2.8", "hf_transfer"), str(tmp_path / "wheels"))
    url = engine(tmp_path, '{vllm: {version: "1", index: "https://lab/simple"}}').launch.program
    assert url is not None
    assert url.index == "https://lab/simple"


def test_an_overlay_and_set_move_the_version_alone(tmp_path: Path) -> None:
    base = '{vllm: {version: "0.24.0", index: "https://lab/simple"}}'
    over = engine(tmp_path, base, 'runtimes: {vllm: "0.25.0"}\n')
    assert over.launch.program == Program("0.25.0", index="https://lab/simple")
    given = engine(tmp_path, base, sets=("runtimes.vllm.version=0.26.0",))
    assert given.launch.program == Program("0.26.0", index="https://lab/simple")


def test_a_version_is_part_of_the_launch_and_of_the_folder(tmp_path: Path) -> None:
    """And where nothing is said of one, the fingerprint is as it was before there were any."""
    plain, old, new = (engine(tmp_path, text) for text in ("{}", '{vllm: "0.24.0"}', '{vllm: "0.25.0"}'))
    assert len({plain.fingerprint, old.fingerprint, new.fingerprint}) == 3
    assert old.launch.program is not None
    folder = old.launch.program.folder("vllm")
    assert folder.startswith("vllm-0.24.0-")
    assert folder == Program("0.24.0").folder("vllm") != Program("0.24.0", "3.12").folder("vllm")
    before = {name: value for name, value in codec.to_plain(plain.launch).items() if name != "program"}
    assert plain.fingerprint == hashlib.sha256(codec.encode(before)).hexdigest()[:12]


@pytest.mark.parametrize(
    ("runtimes", "words"),
    [
        ("{vllm: 0.24}", "put it in quotes"),
        ('{vllm: ">=0.24"}', "is not one version"),
        ('{mine: "0.24.0"}', "runtimes.mine.kind: is required"),
        ('{mine: {kind: command, version: "1"}}', "is no package that could be installed by version"),
        ('{vllm: {version: "1", python: /opt/x/bin/python}}', "python is a version of Python"),
        ('{vllm: {python: "3.12"}}', 'python "3.12" is a version, not a program'),
        ("{vllm: {with: [x]}}", "with and index say what is installed with a version"),
        (
            '{vllm: {version: "1", index: "https://me:secret@lab/simple"}}',
            "a secret must not stand in the file",
        ),
        ('{vllm: {version: "1", packages: [x]}}', 'unknown key "packages"'),
        ('{vllm: {version: "1", wiht: [x]}}', "did you mean with?"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, runtimes: str, words: str) -> None:
    text = faults(tmp_path, runtimes)
    assert words in text
    assert "0.yaml:1:" in text
