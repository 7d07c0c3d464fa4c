"""Every command line in the documentation: it parses, and what needs no engine is run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App, CycloptsError, MissingArgumentError

from sage_reconcile.cli.reference import commands
from tests.docs.pages import NAMES, ROOT, blocks, command_lines

WITHOUT_ENGINES = (
    ["validate"],
    ["schema"],
    ["fmt", "--check"],
    ["completion", "bash"],
    ["llm", "preset", "list"],
    ["llm", "preset", "show", "quickstart"],
    ["llm", "engine", "list"],
    ["llm", "gpu"],
    ["embedding", "list"],
)
# Usage lines of the command page, not commands to type.
_USAGE = re.compile(r"\[[A-Z]")
FOUND = {(line, name) for name in NAMES for line in command_lines(name) if not _USAGE.search(line)}


@pytest.fixture(scope="module")
def app() -> App:
    return commands()


def words_of(line: str) -> list[str]:
    """The words after `sage`, without comments, redirections and what stands for more."""
    line = re.split(r" [>|&]| &&", line.partition("  #")[0])[0]
    words = shlex.split(line.replace("...", ""), comments=True)[1:]
    numbers = {"N": "1", "NUMBER": "1", "PORT": "8000", "SHELL": "bash"}
    return [numbers.get(word, word) for word in words]


def test_there_are_command_lines() -> None:
    assert len(FOUND) > 40


def parse(app: App, words: list[str]) -> None:
    """Raises AssertionError for an unknown command, a cyclopts error for wrong options or arguments."""
    target = app
    depth = 0
    while depth < len(words) and words[depth] in target and not words[depth].startswith("-"):
        target = target[words[depth]]
        depth += 1
    assert depth, f"there is no command {words[0]}"
    if depth == len(words):
        return  # only named; an argument that it needs is not part of its name
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except MissingArgumentError:
        if not words[-1].startswith("-"):
            raise  # else an option is only named: `sage plan -o`


@pytest.mark.parametrize("line", sorted({line for line, _ in FOUND}))
def test_a_command_line_parses(app: App, line: str) -> None:
    words = words_of(line)
    if words[0].startswith("--") or words == ["COMMAND", "--help"]:
        return
    parse(app, words)


@pytest.mark.parametrize(
    "line", ["sage plan --nope", "sage nope x", "sage logs a b", "sage plan --format xml"]
)
def test_a_wrong_one_would_be_found(app: App, line: str) -> None:
    with pytest.raises((AssertionError, CycloptsError)):
        parse(app, words_of(line))


def runs_without_engines(words: list[str]) -> bool:
    return any(words[: len(start)] == start for start in WITHOUT_ENGINES) or "--inventory" in words


RUNNABLE = sorted({line for line, _ in FOUND if runs_without_engines(words_of(line)) and "FILE" not in line})


def test_there_are_lines_to_run() -> None:
    assert len(RUNNABLE) >= 6


@pytest.mark.parametrize("line", RUNNABLE)
def test_a_command_that_needs_no_engine_runs(line: str, tmp_path: Path) -> None:
    words = words_of(line)
    shutil.copytree(ROOT / "stacks", tmp_path / "stacks")
    shutil.copy(ROOT / "stacks" / "quickstart.yaml", tmp_path / "sage.yaml")
    [host] = [one.text for one in blocks("docs/gitops.md") if one.language == "yaml" and "nodes:" in one.text]
    for path in ("stacks/host.yaml", "host.yaml", "host.json"):
        (tmp_path / path).write_text(host, encoding="utf-8")
    expanded = [
        name
        for word in words
        for name in (
            sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob(word)) if "*" in word else [word]
        )
        if name != "stacks/host.yaml" or "--inventory" in words
    ]
    done = run(tmp_path, *expanded)
    # `sage schema --check` and the like are only named without what they need.
    assert done.returncode == 0, f"sage {shlex.join(expanded)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["plan", "--help"], ["gateway", "start", "--help"]]
)
def test_help_runs(words: list[str], tmp_path: Path) -> None:
    assert run(tmp_path, *words).returncode == 0


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "sage_reconcile.cli.main", *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "SAGE_HOME": str(folder / "home"), "SAGE_DISABLE_NVML": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
