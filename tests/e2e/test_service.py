"""`sage service`, with a systemctl that notes what it is told, and with the unit's own command lines run."""

import os
import shlex
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.e2e.world import TIMEOUT, World, ask, engine
from tests.processes import free_port, is_alive
from tests.waiting import wait_until

SYSTEMCTL = """\
#!/bin/sh
echo "$*" >> "$XDG_CONFIG_HOME/told"
case "$*" in
  *is-system-running*) cat "$XDG_CONFIG_HOME/state" ;;
  *is-enabled*) echo enabled ;;
  *is-active*) echo active ;;
  *disable*) ;;
  *restart*) [ ! -e "$XDG_CONFIG_HOME/broken" ] || { echo "Job failed." >&2; exit 1; } ;;
esac
"""


@pytest.fixture
def config(world: World) -> Path:
    """Where the world's systemd keeps units of the user."""
    config = world.folder / "config"
    programs = world.folder / "programs"
    config.mkdir()
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    (config / "state").write_text("running\n")
    world.environ |= {"XDG_CONFIG_HOME": str(config), "PATH": f"{programs}:{os.environ['PATH']}"}
    return config


def told(config: Path) -> list[str]:
    """What systemctl was told since the last time."""
    lines = (config / "told").read_text().splitlines() if (config / "told").exists() else []
    (config / "told").unlink(missing_ok=True)
    words = [line.removeprefix("--user --no-pager ") for line in lines]
    return [line for line in words if not line.startswith("is-")]


def test_install_again_and_uninstall(world: World, config: Path) -> None:
    world.write(engine("chat", env={"HF_TOKEN": "${env:HF_TOKEN}"}))
    unit = config / "systemd" / "user" / "sage-gateway.service"
    first = world("service", "install", "--user", HF_TOKEN="hf-secret").ok()
    assert f"{unit}: written, enabled, started." in first.out
    assert told(config) == ["daemon-reload", "enable sage-gateway.service", "restart sage-gateway.service"]
    text = unit.read_text()
    assert "hf-secret" not in text
    secrets = world.home / "sage-gateway.env"
    assert secrets.read_text() == 'HF_TOKEN="hf-secret"\n'
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    assert text == world("service", "install", "--user", "--print").ok().out

    assert "unchanged" in world("service", "install", "--user").ok().out
    assert told(config) == ["enable sage-gateway.service", "start sage-gateway.service"]
    shown = world("service", "status", "--user", "--json").ok().json()
    assert (shown["installed"], shown["enabled"], shown["active"]) == (True, "enabled", "active")

    assert "Engines keep running" in world("service", "uninstall", "--user").ok().out
    assert told(config) == ["disable --now sage-gateway.service", "daemon-reload"]
    assert not unit.exists()
    assert "nothing was done" in world("service", "uninstall", "--user").ok().out


def test_what_systemd_refuses_is_told_in_its_words(world: World, config: Path) -> None:
    world.write(engine("chat", env={"TOKEN": "${env:NOT_SET_HERE}"}))
    (config / "broken").touch()
    failed = world("service", "install", "--user").failed()
    assert "systemctl restart sage-gateway.service failed: Job failed." in failed.err
    assert "NOT_SET_HERE is not set" in failed.err


def test_without_systemd(world: World, config: Path) -> None:
    world.write(engine("chat"))
    (config / "state").write_text("offline\n")
    failed = world("service", "install", "--user").failed()
    assert "no systemd takes user units here" in failed.err
    assert "@reboot" in failed.out
    assert not (config / "systemd").exists()
    assert world("service", "status", "--user").failed().out.count("no systemd") == 2
    assert "cannot be the name" in world("service", "status", "--name", "a/../b").failed().err


def test_engines_outlive_what_the_unit_starts(world: World) -> None:
    """The unit's own lines, run as systemd does: only the main process is ended, then it is started again."""
    port = free_port()
    world.write(engine("chat"), gateway={"port": port})
    lines = world("service", "install", "--user", "--print").ok().out.splitlines()
    before = shlex.split(value(lines, "ExecStartPre").removeprefix("-"))
    command = shlex.split(value(lines, "ExecStart"))
    for end in (signal.SIGKILL, signal.SIGTERM):
        subprocess.run(before, env=world.environ, capture_output=True, timeout=TIMEOUT, check=False)
        main = subprocess.Popen(
            command, env=world.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        pids = world.until_ready("chat#0")
        wait_until(lambda: is_healthy(port), "the gateway answers")
        assert main.poll() is None
        main.send_signal(end)
        main.wait(TIMEOUT)
        assert is_alive(pids["chat#0"].engine)
    assert world.until_ready("chat#0") == pids
    subprocess.run(before, env=world.environ, capture_output=True, timeout=TIMEOUT, check=False)


def value(lines: list[str], name: str) -> str:
    [found] = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
    return found


def is_healthy(port: int) -> bool:
    try:
        ask(port, "/health")
    except OSError:
        return False
    return True
