"""`sage gateway`: the server that clients talk to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

from sage_reconcile.cli.tail import Follow, Lines

if TYPE_CHECKING:
    from sage_reconcile.gatewayd import GatewayProcess, Start, WatcherProcess
    from sage_reconcile.home import Home

LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]

app = cyclopts.App(
    name="gateway",
    help="Start, stop and look at the server that clients talk to.\n\nExample: sage gateway start -p 8000",
)


@app.command
def start(  # noqa: PLR0913 - one parameter per option
    *,
    port: Annotated[
        int | None,
        cyclopts.Parameter(
            name=["--port", "-p"],
            validator=cyclopts.validators.Number(gte=1, lte=65535),
            help="Port to listen on; else the stack file's, else SAGE_GATEWAY_PORT, else 8000.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        cyclopts.Parameter(
            help="Address; else the stack file's, else SAGE_GATEWAY_HOST, else 127.0.0.1. "
            "Beyond loopback, API keys are needed."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        cyclopts.Parameter(
            validator=cyclopts.validators.Number(gte=1),
            help="Processes that share the port; else the stack file's, else 1.",
        ),
    ] = None,
    stack: Annotated[
        Path | None,
        cyclopts.Parameter(help="Also keep engines as this stack file says, and take its `gateway` section."),
    ] = None,
    foreground: Annotated[
        bool, cyclopts.Parameter(negative="", help="Stay, and log to the terminal.")
    ] = False,
    log_level: Annotated[LogLevel | None, cyclopts.Parameter(help="How much is logged; else info.")] = None,
    api_key_file: Annotated[
        Path | None,
        cyclopts.Parameter(
            help="File with one API key a line, instead of the stack file's keys; SAGE_API_KEYS counts, too."
        ),
    ] = None,
) -> int:
    """Start the gateway and wait until it answers.

    It serves every model that is reconciled, and goes on when this command ends.

    With --stack, `sage watch` of that file runs beside it and ends with it; engines outlive both.

    Example: sage gateway start --stack sage.yaml --workers 2
    """
    import os

    from sage_reconcile import gatewayd
    from sage_reconcile.home import Home

    home = Home.from_environ().claim()
    asked = {"port": port, "host": host, "workers": workers, "log_level": log_level}
    asked["api_key_file"] = _absolute(api_key_file)
    given = {name: value for name, value in asked.items() if value is not None}
    wanted = gatewayd.settle(given, _absolute(stack) or "", os.environ)
    running = gatewayd.find(home)
    if running is not None:
        return _go_on(home, running, wanted)
    if foreground:
        return gatewayd.run_foreground(home, wanted)
    _tell_started(home, gatewayd.start_all(home, wanted))
    return 0


@app.command
def stop(
    *,
    force: Annotated[
        bool, cyclopts.Parameter(negative="", help="Do not wait for requests in flight.")
    ] = False,
) -> int:
    """Stop the gateway and its watcher; requests in flight are finished first, engines keep running.

    Example: sage gateway stop
    """
    from sage_reconcile import gatewayd
    from sage_reconcile.home import Home

    home = Home.from_environ().claim()
    watcher = gatewayd.find_watcher(home)
    stopped = gatewayd.stop(home, force=force)
    if watcher is not None:
        print(f"Stopped the watcher of {watcher.file} (pid {watcher.pid}); its engines keep running.")
    print(f"Stopped the gateway (pid {stopped.pid})." if stopped else "The gateway does not run.")
    return 0


@app.command
def restart() -> int:
    """Replace the gateway by one with new processes and every option it was started with.

    No client notices: the old one finishes what is in flight, and goes on if the new one fails to start.

    With --stack, its watcher too; what the file's `gateway` section says by then counts.

    Example: sage gateway restart
    """
    from sage_reconcile import gatewayd
    from sage_reconcile.home import Home

    home = Home.from_environ().claim()
    _tell_started(home, gatewayd.restart(home))
    return 0


@app.command
def status(*, json: Annotated[bool, cyclopts.Parameter(negative="", help="Print JSON.")] = False) -> int:
    """Show the gateway's process, its watcher, and the engines that are registered in it. Exit code 1 if it
    does not run.

    Example: sage gateway status --json
    """
    from sage_reconcile import gatewayd
    from sage_reconcile.cli import gatewaystatus
    from sage_reconcile.home import Home

    home = Home.from_environ()
    shown = gatewaystatus.look(home, gatewayd.find(home), gatewayd.find_watcher(home))
    if json:
        gatewaystatus.print_json(shown)
    else:
        gatewaystatus.print_text(shown)
    return 0 if shown.gateway else 1


@app.command
def logs(
    *,
    follow: Follow = False,
    lines: Lines = 50,
) -> int:
    """Show the last lines of the gateway's log.

    Example: sage gateway logs -f -n 100
    """
    import sys

    from sage_reconcile.cli.tail import follow as followed
    from sage_reconcile.cli.tail import last_lines
    from sage_reconcile.errors import BlockedError
    from sage_reconcile.gatewayd import log_file
    from sage_reconcile.home import Home

    log = log_file(Home.from_environ())
    if not log.exists():
        raise BlockedError(f"there is no log at {log}: the gateway was not started yet in this SAGE_HOME")
    text, end = last_lines(log, lines)
    sys.stdout.write(text)
    sys.stdout.flush()
    try:
        for more in followed(log, end) if follow else ():
            sys.stdout.write(more)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print()
    return 0


@app.command
def key(
    *,
    name: Annotated[str, cyclopts.Parameter(help="What replies, metrics and logs call it.")] = "team-a",
) -> int:
    """Make a new API key, and show it this once with its entry for `gateway.keys` of a stack file.

    The entry holds only the key's SHA-256; nothing is stored anywhere.

    Example: sage gateway key --name team-a
    """
    from sage_reconcile import secrets
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.stack.fields import is_name

    if not is_name(name):
        raise PermanentError(f"{name!r} cannot be the name of a key: write a-z, 0-9, dot, underscore, hyphen")
    made = secrets.new_key()
    print(made)
    print()
    print("This is the only time that the key is shown. Its entry in the stack file, under gateway.keys:")
    print()
    print(f"  - name: {name}")
    print(f'    sha256: "{secrets.key_digest(made)}"')
    return 0


def _absolute(path: Path | None) -> str | None:
    return str(path.expanduser().absolute()) if path is not None else None


def _go_on(home: "Home", running: "GatewayProcess", wanted: "Start") -> int:
    """A start while the gateway runs: it keeps its options, a watcher that is missing is started."""
    from sage_reconcile import gatewayd

    stack = wanted.options.stack
    watcher = gatewayd.check_no_other(home, stack) if stack else None
    print(f"The gateway already runs: pid {running.pid}, {running.options.address}.")
    if stack:
        is_new = watcher is None
        watcher = watcher or gatewayd.start_watcher(home, stack, wanted.stack_name, wanted.watch_environ)
        _tell_watcher(watcher, "Started the" if is_new else "So does the")
        if gatewayd.is_outdated(running, stack):
            print(
                "The gateway keeps the options it was started with; `sage gateway restart` takes the file's."
            )
    elif _differs(running, wanted):
        print("It keeps the options it was started with; stop it first to change them.")
    return 0


def _differs(running: "GatewayProcess", wanted: "Start") -> bool:
    """Whether it was started otherwise than this command line would, stack file apart."""
    names = ("host", "port", "workers", "log_level", "api_key_file")
    return any(getattr(running.options, name) != getattr(wanted.options, name) for name in names)


def _tell_started(home: "Home", running: "GatewayProcess") -> None:
    from sage_reconcile import gatewayd

    address, log = running.options.address, gatewayd.log_file(home)
    print(f"The gateway runs: pid {running.pid}, {address} (health: {address}/health, log: {log}).")
    watcher = gatewayd.find_watcher(home)
    if watcher is not None:
        _tell_watcher(watcher, "Beside it runs the")


def _tell_watcher(watcher: "WatcherProcess", start: str) -> None:
    print(f"{start} watcher of {watcher.file}: pid {watcher.pid} (log: {watcher.log or 'its terminal'}).")
