"""The systemd unit, and what stands in its place where there is no systemd. Pure."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Scope = Literal["user", "system"]
NAME = "sage-gateway"


@dataclass(frozen=True, slots=True)
class Service:
    """What is started: paths absolute, `program` the words of the sage command, `user` who runs it."""

    scope: Scope
    name: str
    program: tuple[str, ...]
    stack: str
    folder: str
    home: str
    env_file: str
    path: str
    user: str

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.program, "gateway", "start", "--foreground", "--stack", self.stack)


def unit_text(service: Service) -> str:
    """The unit. Why each line is there:

    KillMode=process: supervisors of engines live in the unit's control group and must outlive it; `mixed`
    would end them with SIGKILL. OOMPolicy=continue: one engine that runs out of memory must not end the
    gateway of the others. ExecStartPre: a gateway left over by a killed main process would hold the port.
    """
    is_system = service.scope == "system"
    lines = ["# Written by `sage service install`; written again by it.", "[Unit]"]
    lines.append(f"Description=sage: gateway and engines as {_text(service.stack)} says")
    if is_system:
        lines += ["Wants=network-online.target", "After=network-online.target nvidia-persistenced.service"]
    lines += ["StartLimitIntervalSec=0", "", "[Service]", "Type=exec"]
    if is_system:
        lines.append(f"User={service.user}")
    lines += [
        f"WorkingDirectory={_text(service.folder)}",
        f"Environment={quoted('SAGE_HOME=' + service.home)}",
        f"Environment={quoted('PATH=' + service.path)}",
        "# Secrets that the stack file refers to, NAME=value; its mode is 0600. May be missing.",
        f"EnvironmentFile=-{_text(service.env_file)}",
        f"ExecStartPre=-{command_line((*service.program, 'gateway', 'stop'))}",
        f"ExecStart={command_line(service.command)}",
        "Restart=always",
        "RestartSec=2",
        "# Engines outlive the gateway and its watcher: only the main process is ended.",
        "KillMode=process",
        "TimeoutStopSec=90",
        "OOMPolicy=continue",
        "TasksMax=infinity",
        "LimitNOFILE=65536",
    ]
    if is_system:
        lines.append("LimitMEMLOCK=infinity")
    target = "multi-user.target" if is_system else "default.target"
    return "\n".join([*lines, "UMask=0077", "", "[Install]", f"WantedBy={target}", ""])


def command_line(words: tuple[str, ...]) -> str:
    """Words of Exec lines, where a dollar and a per cent sign would be replaced."""
    return " ".join(quoted(word).replace("$", "$$") for word in words)


def quoted(word: str) -> str:
    """One word as systemd reads it."""
    plain = _text(word)
    if plain and not set(plain) & set(" \t\"'\\;"):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _text(value: str) -> str:
    """Specifiers (%h) are no business of paths; a line stays one line."""
    return value.replace("%", "%%").replace("\n", " ")


def instead(service: Service) -> str:
    """What to use without systemd: lines for cron, runit and OpenRC."""
    env = f"SAGE_HOME={shlex.quote(service.home)} PATH={shlex.quote(service.path)}"
    start = shlex.join([*service.program, "gateway", "start", "--stack", service.stack])
    foreground = shlex.join(service.command)
    file = shlex.quote(service.env_file)
    load = f"set -a; [ -r {file} ] && . {file}; set +a"
    at_boot = f"{load}; {env} {start}".replace("%", "\\%")  # cron reads % as the end of the line
    user = service.user
    return f"""\
cron (crontab -e), started at boot, not restarted:
  @reboot {at_boot}

runit (/etc/sv/{service.name}/run, executable):
  #!/bin/sh
  {load}
  exec chpst -u {user} env {env} {foreground}

OpenRC (/etc/init.d/{service.name}, executable):
  #!/sbin/openrc-run
  supervisor=supervise-daemon
  command={shlex.quote(service.program[0])}
  command_args={shlex.quote(shlex.join(service.command[1:]))}
  command_user={user}
  start_pre() {{ {load}; export {env}; }}

supervisord ends whole process groups only where told so: leave killasgroup and stopasgroup off.
"""


def env_text(known: Mapping[str, str], missing: tuple[str, ...]) -> str:
    """The environment file: values that are there, and commented lines for those that are not."""
    lines = [f"{name}={env_value(value)}" for name, value in known.items()]
    return "".join(f"{line}\n" for line in [*lines, *(f"#{name}=" for name in missing)])


def env_value(value: str) -> str:
    """In double quotes, which systemd and a shell read the same way. Raises ValueError for a line break."""
    if "\n" in value:
        raise ValueError(
            "a value of more than one line cannot stand in an environment file; use ${file:PATH}"
        )
    for char in '\\"$`':
        value = value.replace(char, f"\\{char}")
    return f'"{value}"'
