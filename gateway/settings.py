"""The gateway's options: a command line for the process, environment variables for its workers."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Set to the SAGE_HOME served: by this mark of its environment a gateway process is found.
MARK = "SAGE_GATEWAY"
_KEY_FILE = "SAGE_GATEWAY_API_KEY_FILE"
_MAX_BODY_MIB = "SAGE_GATEWAY_MAX_BODY_MIB"
DEFAULT_MAX_BODY_MIB = 64
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker needs to know. `body_limit` in bytes; `key_file` is a path or ""."""

    home: Path
    key_file: str = ""
    body_limit: int = DEFAULT_MAX_BODY_MIB << 20

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        home = environ.get(MARK) or environ.get("SAGE_HOME") or "~/.sage"
        limit = int(environ.get(_MAX_BODY_MIB) or DEFAULT_MAX_BODY_MIB) << 20
        return cls(Path(home).expanduser().absolute(), environ.get(_KEY_FILE, ""), limit)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m gateway`."""
    p = argparse.ArgumentParser(
        prog="python -m gateway", description="Serves OpenAI HTTP by the routing table."
    )
    p.add_argument("--home", type=Path, required=True, help="the SAGE_HOME whose routing table is served")
    p.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; keys are needed beyond loopback"
    )
    p.add_argument("--port", type=int, default=8000)
    p.add_argument("--workers", type=int, default=1, help="processes that share the port")
    p.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    p.add_argument("--api-key-file", default="", help="file with one key a line")
    p.add_argument("--max-body-mib", type=int, default=DEFAULT_MAX_BODY_MIB, help="largest request, MiB")
    return p


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line. Exits as argparse does."""
    return parser().parse_args(arguments)


def to_environ(options: argparse.Namespace) -> dict[str, str]:
    """The variables from which a worker reads its Settings."""
    return {
        MARK: str(options.home.expanduser().absolute()),
        _KEY_FILE: str(Path(options.api_key_file).absolute()) if options.api_key_file else "",
        _MAX_BODY_MIB: str(options.max_body_mib),
    }


def is_marked(environ: Mapping[str, str], home: Path) -> bool:
    return environ.get(MARK) == os.fspath(home)
