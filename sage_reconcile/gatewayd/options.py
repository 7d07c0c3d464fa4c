"""What a gateway is started with, and where its home keeps what it tells."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gateway import settings
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.supervisor.records import write_atomic

# Of the gateway's environment: what its own command line has no word for, see GatewayOptions.
STACK = "SAGE_GATEWAY_STACK"
GIVEN = "SAGE_GATEWAY_GIVEN"


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Everything that a restart keeps. `api_key_file` is an absolute path or "".

    `stack` is the stack file whose `gateway` section counts, an absolute path or "". `given` are the options
    that the command line said, sorted: the file does not change those.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    log_level: str = "info"
    api_key_file: str = ""
    stack: str = ""
    given: tuple[str, ...] = ()

    @property
    def reachable_host(self) -> str:
        """The host at which this machine reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def address(self) -> str:
        """Where this machine reaches it, as a URL without a trailing slash."""
        host = self.reachable_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def command_line(home: Home, options: GatewayOptions, predecessor: int = 0) -> list[str]:
    """The command that is a gateway; `predecessor` is the pid of the one whose place it takes, or 0."""
    # -P: a folder named gateway in the caller's working directory must not be started instead.
    command = [sys.executable, "-P", "-m", "gateway", "--home", str(home.root), "--host", options.host]
    command += ["--port", str(options.port), "--workers", str(options.workers)]
    command += ["--log-level", options.log_level]
    command += ["--api-key-file", options.api_key_file] if options.api_key_file else []
    return [*command, "--take-over", str(predecessor)] if predecessor else command


def marks(home: Home, options: GatewayOptions) -> dict[str, str]:
    """The environment by which a gateway is found, and known for what it was started with."""
    return {
        settings.MARK: str(home.root),
        "SAGE_HOME": str(home.root),
        STACK: options.stack,
        GIVEN: ",".join(options.given),
    }


def options_of(command: list[str], environ: Mapping[str, str]) -> GatewayOptions | None:
    """The options that a gateway's command line and environment tell, or None if it is not one."""
    for at in range(len(command) - 1):
        if command[at : at + 2] == ["-m", "gateway"]:
            told = settings.parse(command[at + 2 :])
            options = GatewayOptions(told.host, told.port, told.workers, told.log_level, told.api_key_file)
            given = tuple(filter(None, environ.get(GIVEN, "").split(",")))
            return replace(options, stack=environ.get(STACK, ""), given=given)
    return None


def recorded_options(home: Home) -> GatewayOptions | None:
    """The options that the last gateway of this home was started with, or None."""
    try:
        return codec.decode(_options_file(home).read_bytes(), GatewayOptions)
    except (OSError, ValueError):
        return None


def record_options(home: Home, options: GatewayOptions) -> None:
    """Keeps the options for a restart after the gateway was stopped. Raises OSError, which names the file."""
    write_atomic(_options_file(home), codec.encode(options))


def worker_records(home: Home) -> dict[int, Path]:
    """The records that workers keep, by pid; some may be of processes that were killed."""
    return {int(path.stem): path for path in folder(home).glob("*.json") if path.stem.isdigit()}


def folder(home: Home) -> Path:
    return home.run / "gateway"


def queue_policy(home: Home) -> str:
    """The policy that an administrator has set for all queues of the gateway that runs, or ""."""
    try:
        return (home.root / settings.POLICY_FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def log_file(home: Home) -> Path:
    return home.logs / "gateway.log"


def _options_file(home: Home) -> Path:
    return folder(home) / "gateway.json"
