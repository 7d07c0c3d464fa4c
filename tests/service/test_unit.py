"""The unit as text: systemd itself checks it; what is quoted is read back as it was."""

import os
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sage_reconcile.errors import PermanentError
from sage_reconcile.service.describe import write_environment
from sage_reconcile.service.unit import Scope, Service, command_line, env_value, instead, quoted, unit_text
from sage_reconcile.stack.load import load

STACK = """\
version: 1
name: s
engines:
  - {name: a, model: m, use_gpu: false, env: {HF_TOKEN: "${env:HF_TOKEN}", B: "${env:B_KEY}${env:HF_TOKEN}"}}
gateway: {api_keys: ["${env:TEAM_KEY}", "${file:/etc/key}"]}
"""


def service(folder: Path, scope: Scope = "system") -> Service:
    return Service(
        scope=scope,
        name="sage-gateway",
        program=(sys.executable, "-P", "-m", "sage_reconcile.cli.main"),
        stack=str(folder / "sage 100%.yaml"),
        folder=str(folder),
        home=str(folder / "ho me"),
        env_file=str(folder / "ho me" / "x.env"),
        path="/usr/bin:/a b",
        user="root",
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("scope", ["user", "system"])
def test_systemd_takes_it(tmp_path: Path, scope: Scope) -> None:
    unit = tmp_path / "sage-gateway.service"
    unit.write_text(unit_text(service(tmp_path, scope)))
    words = ["systemd-analyze", "verify", *(["--user"] if scope == "user" else []), str(unit)]
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environ)
    assert (done.returncode, "sage-gateway" in done.stderr) == (0, False), done.stderr


def test_engines_outlive_it_and_secrets_do_not_stand_in_it(tmp_path: Path) -> None:
    lines = unit_text(service(tmp_path)).splitlines()
    assert {"KillMode=process", "Restart=always", "OOMPolicy=continue", "User=root"} <= set(lines)
    assert f"EnvironmentFile=-{tmp_path}/ho me/x.env" in lines
    assert f'Environment="SAGE_HOME={tmp_path}/ho me"' in lines
    assert "After=network-online.target nvidia-persistenced.service" in lines
    of_user = unit_text(service(tmp_path, "user"))
    assert "User=" not in of_user
    assert "WantedBy=default.target" in of_user


def test_words_of_a_command_line() -> None:
    assert quoted("a b") == '"a b"'
    assert quoted("") == '""'
    assert quoted('a"b\\') == '"a\\"b\\\\"'
    assert command_line(("/p", "50%", "$HOME")) == "/p 50%% $$HOME"


@pytest.mark.parametrize("value", ["plain", 'a"b', "a\\b", "a$b`c`", "a'b", " # x", "ünï"])
def test_values_are_read_by_a_shell_as_they_were(value: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'X={env_value(value)}; printf %s "$X"'], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == value


def test_without_systemd_there_are_lines_that_work(tmp_path: Path) -> None:
    """The line for cron, run by a shell as cron would, with a program that says what it gets."""
    program = tmp_path / "say"
    program.write_text('#!/bin/sh\necho "$SAGE_HOME|$HF_TOKEN|$*"\n')
    program.chmod(0o755)
    one = replace(service(tmp_path), program=(str(program),), path=os.environ["PATH"])
    text = instead(one)
    assert all(word in text for word in ("crontab", "runit", "OpenRC"))
    line = next(line for line in text.splitlines() if "@reboot" in line)
    command = line.partition("@reboot ")[2].replace("\\%", "%")

    def said() -> str:
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60).stdout

    assert said() == f"{one.home}||gateway start --stack {one.stack}\n"
    Path(one.home).mkdir()
    Path(one.env_file).write_text('HF_TOKEN="x y"\n')
    assert said() == f"{one.home}|x y|gateway start --stack {one.stack}\n"
    assert shlex.split(command)


def test_the_environment_file(tmp_path: Path) -> None:
    file = tmp_path / "sage.yaml"
    file.write_text(STACK)
    stack = load([file], {}, portable=True)
    path = tmp_path / "x.env"
    assert write_environment(path, stack, {"HF_TOKEN": "hf one", "OTHER": "x"}) == ("B_KEY", "TEAM_KEY")
    assert path.read_text() == 'HF_TOKEN="hf one"\n#B_KEY=\n#TEAM_KEY=\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    path.write_text('HF_TOKEN="mine"\n#B_KEY=\nTEAM_KEY=k')
    path.chmod(0o644)
    assert write_environment(path, stack, {"HF_TOKEN": "another", "SAGE_API_KEYS": "a"}) == ("B_KEY",)
    assert path.read_text() == 'HF_TOKEN="mine"\n#B_KEY=\nTEAM_KEY=k\nSAGE_API_KEYS="a"\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(PermanentError, match="more than one line"):
        write_environment(tmp_path / "y.env", stack, {"HF_TOKEN": "a\nb"})
