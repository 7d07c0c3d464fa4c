"""The gateways that are measured, as targets.toml describes them, and how they are found and installed."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.gateway.processes import ROOT

HERE = Path(__file__).resolve().parent
TARGETS = HERE / "targets.toml"
# nginx and HAProxy lie where only root looks.
SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"
VERSION_S = 60
_VERSION = re.compile(r"\d+(\.\d+)+")
_MARKER = ".sage-complete"


@dataclass(frozen=True)
class Target:
    """One entry of targets.toml, whose head says what the fields mean. No `cmd`: the upstream itself."""

    name: str
    cmd: str = ""
    ready: str = "/health"
    version: str = ""
    package: str = ""
    packages: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    debian: str = ""
    cores: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def program(self) -> str:
        return shlex.split(self.cmd)[0].replace("{python}", sys.executable)

    def found(self) -> str | None:
        """Where its program lies; None if it is not installed."""
        own = peers_folder() / self.name
        if self.packages:
            return str(own / "bin" / self.program) if (own / _MARKER).exists() else None
        return shutil.which(self.program, path=search_path())

    def is_installed(self) -> bool:
        return not self.cmd or self.found() is not None


DIRECT = Target("direct")


def peers_folder() -> Path:
    cache = Path(os.environ.get("SAGE_TEST_CACHE") or "~/.cache/sage").expanduser()
    return cache / "bench-peers"


def search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:{SYSTEM}"


def load_targets(path: Path = TARGETS) -> list[Target]:
    with path.open("rb") as file:
        entries = tomllib.load(file)
    return [
        Target(
            name, **{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        )
        for name, fields in entries.items()
    ]


def parse_target(text: str) -> Target:
    """A target of the command line: name=mine;cmd=mygateway --port {port} --upstream {upstream}."""
    fields = dict(part.split("=", 1) for part in text.split(";") if part)
    return Target(**{name.strip(): value for name, value in fields.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Places:
    """What the braces of a target's texts stand for; ports on 127.0.0.1."""

    port: int
    metrics_port: int
    upstreams: tuple[int, ...]
    folder: Path
    model: str
    key: str

    def fill(self, text: str) -> str:
        urls = [f"http://127.0.0.1:{port}" for port in self.upstreams]
        servers = [f"127.0.0.1:{port}" for port in self.upstreams]
        for name, value in {
            "port": str(self.port),
            "metrics_port": str(self.metrics_port),
            "upstreams": " ".join(urls),
            "upstream": urls[0],
            "upstream_servers": " ".join(f"server {server};" for server in servers),
            "haproxy_servers": "\n  ".join(f"server s{n} {server}" for n, server in enumerate(servers)),
            "dir": str(self.folder),
            "model": self.model,
            "key": self.key,
            "python": sys.executable,
            "repository": str(ROOT),
        }.items():
            text = text.replace("{" + name + "}", value)
        return text


def command_of(target: Target, places: Places) -> list[str]:
    """Its command line, the program by its full path."""
    program, *arguments = shlex.split(places.fill(target.cmd))
    return [target.found() or program, *arguments]


def version_of(target: Target) -> str:
    """The number that its version command prints, or of its Python package; "" if neither can be asked."""
    if not target.cmd:
        return ""
    program = target.found() or target.program
    command = [program, *shlex.split(target.version)[1:]]
    if target.package:
        python = Path(program).with_name("python")
        code = f"import importlib.metadata as m; print(m.version({target.package!r}))"
        command = [str(python), "-c", code]
    elif not target.version:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=VERSION_S, check=False, cwd=ROOT
        )
        if number := _VERSION.search(done.stdout + done.stderr):
            return number[0]
    return ""


def install(targets: Iterable[Target]) -> None:
    """Installs what is missing of these and `wrk`; what cannot be installed is told, and left out."""
    missing = [target for target in targets if not target.is_installed()]
    debian = [target.debian for target in missing if target.debian]
    if not shutil.which("wrk"):
        debian.append("wrk")
    if debian:
        _install_debian(debian)
    for target in missing:
        if target.packages:
            install_python(target)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _install_debian(packages: list[str]) -> None:
    command = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        _say(f"missing from this system: {', '.join(packages)}; on Debian, as root: {command}")
        return
    _say(f"installing {', '.join(packages)} ...")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for one in ("apt-get -qq update", command.replace("install", "-qq -y install", 1)):
            done = subprocess.run(one.split(), env=environ, capture_output=True, text=True, check=False)
            if done.returncode:
                _say(f"{one} failed:\n{done.stderr[-1000:]}")


@contextlib.contextmanager
def _no_services(policy: Path = Path("/usr/sbin/policy-rc.d")) -> Iterator[None]:
    """Debian starts a web server as soon as it is installed, unless this script says no (101)."""
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    try:
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink()


def install_python(target: Target) -> None:
    """Into an environment of its own; the first of its packages for which the index has all that it needs."""
    folder = peers_folder() / target.name
    _say(f"installing {target.name} into {folder} (minutes) ...")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = [str(folder / "bin" / "python"), "-m"]
    pip = [*python, "pip", "install", "--quiet", "--only-binary", ":all:"]
    if target.overrides:
        # Of the two only uv can put another release in the place of one that a package asks for.
        subprocess.run([*pip, "uv"], check=True)
        path = folder / "overrides.txt"
        path.write_text("\n".join(target.overrides))
        uv = [*python, "uv", "pip", "install", "--python", python[0], "--quiet", "--only-binary", ":all:"]
        pip = [*uv, "--override", str(path)]
    for package in target.packages:
        done = subprocess.run([*pip, package], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (folder / _MARKER).write_text(f"{package}\n")
            return
        faults = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr]
        _say(f"{package} cannot be installed: {' '.join(faults)[-300:]}")
