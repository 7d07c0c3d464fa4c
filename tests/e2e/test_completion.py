"""Shell completion, and that every command shows an example."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sage_reconcile.cli.reference import commands, leaves
from tests.e2e.world import World

LEAVES = [words for words, _ in leaves(commands())]


def asked(world: World, *words: str) -> list[str]:
    return world("__complete", *words).ok().out.split()


def test_commands_options_and_values(world: World) -> None:
    assert {"plan", "llm", "embedding"} <= set(asked(world, ""))
    assert asked(world, "val") == ["validate"]
    assert asked(world, "llm", "engine", "") == ["list", "remove", "start", "stop"]
    assert asked(world, "plan", "--form") == ["--format"]
    assert asked(world, "plan", "--format", "m") == ["markdown"]
    assert asked(world, "completion", "") == ["bash", "fish", "zsh"]
    assert asked(world, "llm", "preset", "apply", "-n", "quick") == ["quickstart"]
    assert asked(world, "llm", "preset", "show", "qwen-l") == ["qwen-lite"]
    assert asked(world, "nonsense", "") == []


def test_engines_and_files(world: World) -> None:
    (world.home / "run" / "demo" / "chat.0").mkdir(parents=True)
    (world.home / "stacks").mkdir()
    (world.home / "stacks" / "adhoc.yaml").write_text("engines: [{name: mine, model: m}]\n")
    assert asked(world, "logs", "") == ["chat", "demo/chat", "mine"]
    assert asked(world, "llm", "engine", "stop", "") == ["mine"]
    (world.folder / "sub").mkdir()
    for name in ("sage.yaml", "notes.txt", "sub/other.yml"):
        (world.folder / name).touch()
    assert {"sage.yaml", "sub/"} <= set(asked(world, "plan", ""))
    assert "notes.txt" not in asked(world, "plan", "")
    assert asked(world, "gateway", "start", "--stack", "sub/") == ["sub/other.yml"]


def test_a_real_bash_completes(world: World, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "sage"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m sage_reconcile.cli.main "$@"\n')
    command.chmod(0o755)
    script = world("completion", "bash").ok().out
    script += '\nCOMP_WORDS=(sage llm preset show q)\nCOMP_CWORD=4\n_sage\nprintf "%s\\n" "${COMPREPLY[@]}"'
    environ = {**world.environ, "PATH": f"{command.parent}:{world.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["quickstart", "qwen-lite", "qwen-mini-with-embeddings"]
    for shell in ("zsh", "fish"):
        if shutil.which(shell):
            text = world("completion", shell).ok().out
            subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_there_are_many_commands() -> None:
    assert len(LEAVES) > 40


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_has_an_example(words: str) -> None:
    command = dict(leaves(commands()))[words]
    examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith("Example: ")]
    assert len(examples) == 1
    assert examples[0].startswith(f"Example: sage {words}")


def test_a_group_shows_its_commands(world: World) -> None:
    for group in (["llm"], ["llm", "engine"], ["llm", "preset"], ["llm", "model"], ["embedding"]):
        out = world(*group, "--help").ok().out
        assert f"Example: sage {' '.join(group)}" in out
        below = [words for words in LEAVES if words.startswith(" ".join(group) + " ")]
        assert [w for w in below if f" {w.split()[len(group)]} " not in out] == []
