"""`sage gateway`: the server that clients talk to."""

from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

if TYPE_CHECKING:
    from sage_reconcile.gatewayd import GatewayProcess
    from sage_reconcile.home import Home
    from sage_reconcile.model.routing import RoutingTable

LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]

app = cyclopts.App(
    name="gateway",
    help="Start, stop and look at the server that clients talk to.\n\nExample: sage gateway start -p 8000",
)


@app.command
def start(
    *,
    port: Annotated[
        int,
        cyclopts.Parameter(
            name=["--port", "-p"],
            env_var="SAGE_GATEWAY_PORT",
            validator=cyclopts.validators.Number(gte=1, lte=65535),
            help="Port to listen on.",
        ),
    ] = 8000,
    host: Annotated[
        str,
        cyclopts.Parameter(
            env_var="SAGE_GATEWAY_HOST", help="Address; beyond loopback, API keys are needed."
        ),
    ] = "127.0.0.1",
    workers: Annotated[
        int,
        cyclopts.Parameter(
            validator=cyclopts.validators.Number(gte=1), help="Processes that share the port."
        ),
    ] = 1,
    foreground: Annotated[
        bool, cyclopts.Parameter(negative="", help="Stay, and log to the terminal.")
    ] = False,
    log_level: Annotated[LogLevel, cyclopts.Parameter(help="How much is logged.")] = "info",
    api_key_file: Annotated[
        str | None, cyclopts.Parameter(help="File with one API key a line; SAGE_API_KEYS counts, too.")
    ] = None,
) -> int:
    """Start the gateway and wait until it answers.

    It serves every model that is reconciled, and goes on when this command ends.

    Example: sage gateway start --port 8000 --workers 2
    """
    from pathlib import Path

    from sage_reconcile import gatewayd
    from sage_reconcile.home import Home

    home = Home.from_environ()
    key_file = str(Path(api_key_file).expanduser().absolute()) if api_key_file else ""
    options = gatewayd.GatewayOptions(host, port, workers, log_level, key_file)
    running = gatewayd.find(home)
    if running is not None:
        print(f"The gateway already runs: pid {running.pid}, {running.options.address}.")
        if running.options != options:
            print("It keeps the options it was started with; stop it first to change them.")
        return 0
    if foreground:
        gatewayd.run_foreground(home, options)
    _tell_started(home, gatewayd.start(home, options))
    return 0


@app.command
def stop(
    *,
    force: Annotated[
        bool, cyclopts.Parameter(negative="", help="Do not wait for requests in flight.")
    ] = False,
) -> int:
    """Stop the gateway; requests in flight are finished first, engines keep running.

    Example: sage gateway stop
    """
    from sage_reconcile import gatewayd
    from sage_reconcile.home import Home

    stopped = gatewayd.stop(Home.from_environ(), force=force)
    print(f"Stopped the gateway (pid {stopped.pid})." if stopped else "The gateway does not run.")
    return 0


@app.command
def restart() -> int:
    """Stop the gateway and start it again with every option it was started with.

    Example: sage gateway restart
    """
    from sage_reconcile import gatewayd
    from sage_reconcile.home import Home

    home = Home.from_environ()
    _tell_started(home, gatewayd.restart(home))
    return 0


@app.command
def status(*, json: Annotated[bool, cyclopts.Parameter(negative="", help="Print JSON.")] = False) -> int:
    """Show the gateway's process and the engines that are registered in it. Exit code 1 if it does not run.

    Example: sage gateway status --json
    """
    from sage_reconcile import gatewayd
    from sage_reconcile.home import Home

    home = Home.from_environ()
    running = gatewayd.find(home)
    table, fault = _routing_table(home)
    if json:
        _print_json(running, table)
    else:
        _print_status(running, table, fault)
    return 0 if running else 1


@app.command
def logs(
    *,
    follow: Annotated[
        bool, cyclopts.Parameter(name=["--follow", "-f"], negative="", help="Go on as lines are written.")
    ] = False,
    lines: Annotated[
        int, cyclopts.Parameter(name=["--lines", "-n"], help="How many of the last lines.")
    ] = 50,
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


def _tell_started(home: "Home", running: "GatewayProcess") -> None:
    from sage_reconcile.gatewayd import log_file

    address = running.options.address
    print(
        f"The gateway runs: pid {running.pid}, {address} (health: {address}/health, log: {log_file(home)})."
    )


def _routing_table(home: "Home") -> "tuple[RoutingTable, str]":
    """The table as published, and what is wrong with it if it cannot be read."""
    from sage_reconcile.model import codec
    from sage_reconcile.model.routing import RoutingTable

    try:
        return codec.decode(home.routing_file.read_bytes(), RoutingTable), ""
    except FileNotFoundError:
        return RoutingTable(), ""
    except (OSError, ValueError) as error:
        return RoutingTable(), f"{home.routing_file} cannot be read: {error}"


def _engines(table: "RoutingTable") -> list[dict[str, object]]:
    return [
        {
            "id": backend.id,
            "stack": backend.stack,
            "engine": backend.engine,
            "replica": backend.replica,
            "kind": backend.kind,
            "names": [route.name for route in table.routes if backend.id in route.backends],
            "model": backend.model,
            "url": backend.url,
            "state": backend.state,
        }
        for backend in table.backends
    ]


def _print_json(running: "GatewayProcess | None", table: "RoutingTable") -> None:
    import json
    import time

    from sage_reconcile.gatewayd import is_healthy

    told = {
        "running": running is not None,
        "healthy": running is not None and is_healthy(running),
        "pid": running.pid if running else None,
        "address": running.options.address if running else None,
        "workers": running.options.workers if running else None,
        "uptime_seconds": round(time.time() - running.started) if running else None,
        "engines": _engines(table),
    }
    print(json.dumps(told, indent=2))


def _print_status(running: "GatewayProcess | None", table: "RoutingTable", fault: str) -> None:
    import time
    from datetime import timedelta

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sage_reconcile.gatewayd import is_healthy

    console = Console(highlight=False)
    if running is None:
        console.print("The gateway does not run; `sage gateway start` starts it.")
    else:
        health = "healthy" if is_healthy(running) else "[red]does not answer[/red]"
        uptime = timedelta(seconds=round(time.time() - running.started))
        console.print(
            f"The gateway runs: pid {running.pid}, {running.options.address}, up {uptime}, {health}."
        )
    if fault:
        console.print(f"[red]{escape(fault)}[/red]")
    if not table.backends:
        console.print("No engines are registered; `sage apply` registers those of a stack file.")
        return
    view = Table(
        "Engine", "Kind", "Names", "State", "Address", title="Registered engines", title_justify="left"
    )
    for engine in _engines(table):
        names = ", ".join(str(name) for name in engine["names"]) if isinstance(engine["names"], list) else ""
        place = f"{engine['stack']}/{engine['engine']}#{engine['replica']}"
        cells = (place, engine["kind"], names, engine["state"], engine["url"])
        view.add_row(*(escape(str(cell)) for cell in cells))
    console.print(view)
