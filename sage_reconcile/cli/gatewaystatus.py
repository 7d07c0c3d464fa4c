"""What `sage gateway status` shows."""

import json
import time
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sage_reconcile import gatewayd
from sage_reconcile.errors import ReconcileError
from sage_reconcile.gatewayd import GatewayProcess, WatcherProcess
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.routing import RoutingTable
from sage_reconcile.render.print import console as print_console


@dataclass(frozen=True, slots=True)
class Shown:
    """What was found. `table_fault` and `stack_fault` are "" when all is well.

    `stack` is the stack file that counts, or "". `is_outdated` says that its gateway section is not what the
    gateway runs with. `queue_policy` is what an administrator has set for all queues, or "".
    """

    gateway: GatewayProcess | None
    is_healthy: bool
    watcher: WatcherProcess | None
    stack: str
    is_outdated: bool
    stack_fault: str
    table: RoutingTable
    table_fault: str
    queue_policy: str


def look(home: Home, gateway: GatewayProcess | None, watcher: WatcherProcess | None) -> Shown:
    """Everything that is shown."""
    stack = watcher.file if watcher else gateway.options.stack if gateway else ""
    is_outdated, stack_fault = _compare(gateway, stack)
    table, table_fault = _routing_table(home)
    is_healthy = gateway is not None and gatewayd.is_healthy(gateway)
    policy = gatewayd.queue_policy(home) if gateway else ""
    return Shown(gateway, is_healthy, watcher, stack, is_outdated, stack_fault, table, table_fault, policy)


def _compare(gateway: GatewayProcess | None, stack: str) -> tuple[bool, str]:
    """Whether a restart would change the gateway, and why that cannot be told."""
    if gateway is None or not stack:
        return False, ""
    try:
        return gatewayd.is_outdated(gateway, stack), ""
    except ReconcileError as error:
        return False, str(error)


def _routing_table(home: Home) -> tuple[RoutingTable, str]:
    """The table as published, and what is wrong with it if it cannot be read."""
    try:
        return codec.decode(home.routing_file.read_bytes(), RoutingTable), ""
    except FileNotFoundError:
        return RoutingTable(), ""
    except (OSError, ValueError) as error:
        return RoutingTable(), f"{home.routing_file} cannot be read: {error}"


def _engines(table: RoutingTable) -> list[dict[str, object]]:
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


def print_json(shown: Shown) -> None:
    running, watcher = shown.gateway, shown.watcher
    told = {
        "running": running is not None,
        "healthy": shown.is_healthy,
        "pid": running.pid if running else None,
        "address": running.options.address if running else None,
        "workers": running.options.workers if running else None,
        "uptime_seconds": round(time.time() - running.started) if running else None,
        "stack": shown.stack or None,
        "needs_restart": shown.is_outdated,
        "queue_policy": shown.queue_policy or None,
        "watcher": watcher
        and {
            "pid": watcher.pid,
            "file": watcher.file,
            "log": watcher.log or None,
            "uptime_seconds": round(time.time() - watcher.started),
        },
        "engines": _engines(shown.table),
    }
    print(json.dumps(told, indent=2))


def print_text(shown: Shown) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if shown.gateway is None:
        console.print("The gateway does not run; `sage gateway start` starts it.")
    else:
        health = "healthy" if shown.is_healthy else "[red]does not answer[/red]"
        address, uptime = shown.gateway.options.address, _uptime(shown.gateway.started)
        console.print(f"The gateway runs: pid {shown.gateway.pid}, {address}, up {uptime}, {health}.")
    for line in _watcher_lines(shown):
        console.print(line)
    if shown.table_fault:
        console.print(f"[red]{escape(shown.table_fault)}[/red]")
    if not shown.table.backends:
        console.print("No engines are registered; `sage apply` registers those of a stack file.")
        return
    if shown.gateway is None:
        console.print("These routes are published, but nobody serves them:")
    # Tables are fitted to the width of a terminal; in a pipe there is none.
    print_console().print(_table(shown), soft_wrap=False)


def _table(shown: Shown) -> Table:
    """The engines; what does not fit goes on in the next line, since addresses and names are to be copied."""
    title = "Registered engines" if shown.gateway else None
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for name in ("State", "Kind"):
        table.add_column(name, no_wrap=True)
    for name in ("Engine", "Address", "Names"):
        table.add_column(name, overflow="fold")
    for engine in _engines(shown.table):
        names = ", ".join(str(name) for name in engine["names"]) if isinstance(engine["names"], list) else ""
        place = f"{engine['stack']}/{engine['engine']}#{engine['replica']}"
        cells = (engine["state"], engine["kind"], place, engine["url"], names)
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def _watcher_lines(shown: Shown) -> list[str]:
    """Lines of markup about the watcher and its file; none for a gateway without --stack."""
    file, watcher = escape(shown.stack), shown.watcher
    lines = []
    if watcher is not None:
        log = escape(watcher.log) or "its terminal"
        lines.append(
            f"Its engines are kept as {file} says: watcher pid {watcher.pid}, "
            f"up {_uptime(watcher.started)}, log: {log}."
        )
    elif shown.stack:
        lines.append(
            f"[red]The watcher of {file} does not run[/red]; `sage gateway start --stack {file}` starts it."
        )
    if shown.queue_policy:
        lines.append(
            f"Every queue is served by {escape(shown.queue_policy)}, as an administrator has set; "
            "POST /admin/set_policy with 'stack' gives them back to the stack file."
        )
    if shown.is_outdated:
        lines.append(
            f"[yellow]The gateway runs with other options than {file} says[/yellow]; "
            "`sage gateway restart` takes them over."
        )
    if shown.stack_fault:
        lines.append(f"[red]{escape(shown.stack_fault)}[/red]")
    return lines


def _uptime(started: float) -> timedelta:
    return timedelta(seconds=round(time.time() - started))
