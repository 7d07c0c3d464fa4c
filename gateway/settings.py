"""The gateway's options: a command line for the process, environment variables for its workers."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sage_reconcile.errors import PermanentError

# Set to the SAGE_HOME served: by this mark of its environment a gateway process is found.
MARK = "SAGE_GATEWAY"
_KEY_FILE = "SAGE_GATEWAY_API_KEY_FILE"
# Origins whose pages may use the gateway from a browser, commas between them.
CORS_ORIGINS = "SAGE_GATEWAY_CORS"
# Below a SAGE_HOME: the policy that an administrator has set for all queues.
POLICY_FILE = "run/gateway/queue_policy"
MAX_BODY_MIB = "SAGE_GATEWAY_MAX_BODY_MIB"
DEFAULT_MAX_BODY_MIB = 64
# "off" leaves the access log away.
ACCESS_LOG = "SAGE_GATEWAY_ACCESS_LOG"
WORKERS = "SAGE_GATEWAY_WORKERS"
# "off": nothing is kept. The database's URL, whose references to secrets are resolved when it is opened, and
# how much of a session is put before a request.
SESSIONS = "SAGE_SESSIONS"
SESSIONS_URL = "SAGE_SESSIONS_URL"
SESSIONS_MAX_TURNS = "SAGE_SESSIONS_MAX_TURNS"
SESSIONS_MAX_BYTES = "SAGE_SESSIONS_MAX_BYTES"
# What a stack file says of them, as JSON; then the others do not count.
STACK_SESSIONS = "SAGE_GATEWAY_SESSIONS"
DEFAULT_MAX_TURNS = 200
DEFAULT_MAX_BYTES = 1 << 20
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Where sessions are kept (a `url` of "" is $SAGE_HOME/sage.db), and how much of one an engine gets."""

    is_on: bool = True
    url: str = ""
    max_turns: int = DEFAULT_MAX_TURNS
    max_bytes: int = DEFAULT_MAX_BYTES

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "SessionSettings":
        if given := environ.get(STACK_SESSIONS):
            return cls(**json.loads(given))
        return cls(
            is_on=environ.get(SESSIONS, "on") != "off",
            url=environ.get(SESSIONS_URL, ""),
            max_turns=int(environ.get(SESSIONS_MAX_TURNS) or DEFAULT_MAX_TURNS),
            max_bytes=int(environ.get(SESSIONS_MAX_BYTES) or DEFAULT_MAX_BYTES),
        )

    def to_text(self) -> str:
        """The value of SAGE_GATEWAY_SESSIONS."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker needs to know. `body_limit` in bytes; `key_file` is a path or "".

    `cors_origins` are origins as browsers send them, or "*" alone; empty: no page of another origin.
    `workers` is how many of them share the port: what is limited for all is limited to a part in each.
    """

    home: Path
    key_file: str = ""
    body_limit: int = DEFAULT_MAX_BODY_MIB << 20
    cors_origins: tuple[str, ...] = ()
    access_log: bool = True
    workers: int = 1
    sessions: SessionSettings = SessionSettings()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        home = environ.get(MARK) or environ.get("SAGE_HOME") or "~/.sage"
        limit = int(environ.get(MAX_BODY_MIB) or DEFAULT_MAX_BODY_MIB) << 20
        origins = tuple(filter(None, map(str.strip, environ.get(CORS_ORIGINS, "").split(","))))
        return cls(
            home=Path(home).expanduser().absolute(),
            key_file=environ.get(_KEY_FILE, ""),
            body_limit=limit,
            cors_origins=origins,
            access_log=environ.get(ACCESS_LOG, "on") != "off",
            workers=int(environ.get(WORKERS) or 1),
            sessions=SessionSettings.from_environ(environ),
        )


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
    p.add_argument("--workers", type=_count, default=1, help="processes that share the port")
    p.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    p.add_argument("--api-key-file", default="", help="file with one key a line")
    p.add_argument(
        "--max-body-mib",
        type=_mebibytes,
        help=f"largest request, MiB; else {MAX_BODY_MIB}, else {DEFAULT_MAX_BODY_MIB}",
    )
    p.add_argument(
        "--take-over",
        type=int,
        default=0,
        metavar="PID",
        help="take the place of this gateway of the same home as soon as this one serves; "
        "it finishes what it has in flight",
    )
    return p


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: give one from 1 on")
    return int(text)


def _mebibytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in MiB: give a whole number from 1 on")
    return int(text)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line. Exits as argparse does."""
    return parser().parse_args(arguments)


def to_environ(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables from which a worker reads its Settings; what no option says, `environ` may.

    Raises PermanentError for a variable that is no size.
    """
    try:
        max_body = options.max_body_mib or _mebibytes(environ.get(MAX_BODY_MIB) or str(DEFAULT_MAX_BODY_MIB))
    except argparse.ArgumentTypeError as error:
        raise PermanentError(f"{MAX_BODY_MIB}: {error}") from error
    return {
        MARK: str(options.home.expanduser().absolute()),
        _KEY_FILE: str(Path(options.api_key_file).absolute()) if options.api_key_file else "",
        MAX_BODY_MIB: str(max_body),
        WORKERS: str(options.workers),
    }


def is_marked(environ: Mapping[str, str], home: Path) -> bool:
    return environ.get(MARK) == os.fspath(home)
