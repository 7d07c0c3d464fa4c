"""`sage llm logs`, `gpu`, `export`, and the list of engines: what is only looked at."""

import asyncio
from typing import Annotated, Any

from cyclopts import Parameter

from sage_reconcile.cli.stackfile import Json
from sage_reconcile.cli.tail import Follow, Lines

COLUMNS = ("ID", "MODEL", "KIND", "PORT", "STATE", "GPU", "PID", "UPTIME")


def show_engines(as_json: bool, kind: str = "") -> int:
    """The table of engines, of one kind or of all."""
    from rich.table import Table
    from rich.text import Text

    from sage_reconcile.home import Home
    from sage_reconcile.plan.classify import duration
    from sage_reconcile.render.print import console, print_json

    rows = [row for row in engine_rows(Home.from_environ()) if kind in ("", row["kind"])]
    if as_json:
        print_json({"engines": rows})
        return 0
    if not rows:
        print("no engine; `sage llm serve` or `sage llm engine start MODEL` starts one")
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, no_wrap=name != "MODEL", overflow="fold")
    for row in rows:
        numbers = [str(row[key]) if row[key] else "-" for key in ("port", "pid")]
        gpus = ",".join(map(str, row["gpus"])) or "cpu"
        gpu = gpus if row["pid"] else "-"
        up = duration(row["uptime_seconds"]) if row["pid"] else "-"
        state = Text(row["state"], style=_style(row["state"]))
        table.add_row(row["id"], row["model"], row["kind"], numbers[0], state, gpu, numbers[1], up)
    console().print(table, soft_wrap=False)
    return 0


def _style(state: str) -> str:
    from sage_reconcile.model.observed import Health
    from sage_reconcile.render.status import STYLES

    return STYLES[Health(state)] if state in set(Health) else "dim"


def engine_rows(home: Any) -> list[dict[str, Any]]:
    """Engines that run, external ones, and those of adhoc.yaml that do not run, as `--json` shows them."""
    from sage_reconcile import adhoc
    from sage_reconcile.cli.llm.whole import say
    from sage_reconcile.observe.look import LocalEyes
    from sage_reconcile.render.status import status_data

    observed = asyncio.run(LocalEyes(home).look())
    kinds = {launch.mark.id: str(launch.mark.spec.kind) for launch in observed.launches}
    published = observed.routing.backends if observed.routing else ()
    kinds |= {backend.id: backend.kind for backend in published if backend.is_external}
    indices = {gpu.uuid: gpu.index for gpu in observed.gpus}
    rows = []
    for data in status_data(observed)["engines"]:
        gpus = [indices.get(uuid, uuid) for uuid in data["gpus"]]
        of_stack = "" if data["stack"] == adhoc.STACK else f"{data['stack']}/"
        number = f"#{data['replica']}" if data["replica"] else ""
        keys = ("engine", "stack", "model", "runtime", "port", "state", "pid", "uptime_seconds")
        row = {
            "id": f"{of_stack}{data['engine']}{number}",
            "kind": kinds.get(data["id"], "llm"),
            "gpus": gpus,
        }
        rows.append({**row, **{key: data[key] for key in keys}, "launch": data["id"]})
    running = {row["engine"] for row in rows if row["stack"] == adhoc.STACK}
    known, fault = adhoc.entries_or_fault(home)
    if fault:
        say(f"note: {fault}")
    rows += [_absent(name, entry) for name, entry in known.items() if name not in running]
    return rows


def _absent(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of adhoc.yaml without a process."""
    return {
        "id": name,
        "kind": entry.get("kind", "llm"),
        "gpus": [],
        "engine": name,
        "stack": "adhoc",
        "model": str(entry.get("model")),
        "runtime": entry.get("runtime", ""),
        "port": entry.get("port"),
        "state": "stopped" if entry.get("state") == "stopped" else "missing",
        "pid": None,
        "uptime_seconds": 0.0,
        "launch": "",
    }


def gpu(*, json: Json = False) -> int:
    """Show the GPUs: memory used and free, utilisation, and the engines on each.

    Example: sage llm gpu
    """
    from rich.table import Table

    from sage_reconcile.errors import BlockedError
    from sage_reconcile.home import Home
    from sage_reconcile.observe.look import LocalEyes
    from sage_reconcile.render.print import console, print_json
    from sage_reconcile.render.status import status_data

    observed = asyncio.run(LocalEyes(Home.from_environ()).look())
    gpus = status_data(observed)["gpus"]
    if json:
        print_json({"gpus": gpus})
        return 0
    gaps = [gap for gap in observed.gaps if gap.what in ("gpus", "node")]
    if not gpus and gaps:
        raise BlockedError(f"the GPUs cannot be seen: {gaps[0].reason}; see `sage doctor`")
    if not gpus:
        print("no GPU on this host; engines run on the CPU")
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("GPU", "NAME", "USED MIB", "TOTAL MIB", "FREE MIB", "UTIL", "ENGINES"):
        is_number = name not in ("GPU", "NAME", "ENGINES")
        table.add_column(name, no_wrap=name != "ENGINES", justify="right" if is_number else "left")
    for one in gpus:
        sizes = [f"{one[f'memory_{key}_mib']:,}" for key in ("used", "total", "free")]
        busy = "-" if one["utilization"] is None else f"{one['utilization']} %"
        engines = ", ".join(name.partition("@")[0] for name in one["engines"]) or "-"
        table.add_row(str(one["index"]), one["name"], *sizes, busy, engines)
    console().print(table, soft_wrap=False)
    return 0


def export() -> int:
    """Print adhoc.yaml: what was started by hand, as a stack file to put into git.

    Example: sage llm export > sage.yaml
    """
    from sage_reconcile import adhoc
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.home import Home

    home = Home.from_environ()
    text = adhoc.text_of(home)
    if not text:
        raise PermanentError(f"there is no {home.adhoc_file}: nothing was started by `sage llm` yet")
    print(text, end="")
    return 0


def logs(
    engine: Annotated[str | None, Parameter(help="Left out: the chat engine, or the only one.")] = None,
    /,
    *,
    follow: Follow = False,
    lines: Lines = 50,
) -> int:
    """Show what an engine of adhoc.yaml prints; also of one that has ended.

    Example: sage llm logs --follow
    """
    from sage_reconcile import adhoc
    from sage_reconcile.cli.logs import logs as of_engine
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.home import Home

    if engine is None:
        home = Home.from_environ()
        ran = {path.name.rpartition(".")[0] for path in (home.run / adhoc.STACK).glob("*.*") if path.is_dir()}
        names = sorted(ran | adhoc.entries(home).keys())
        engine = "chat" if "chat" in names else names[0] if len(names) == 1 else None
        if engine is None:
            raise PermanentError(f"name the engine; there are: {', '.join(names) or 'none'}")
    return of_engine(engine if "/" in engine else f"{adhoc.STACK}/{engine}", follow=follow, lines=lines)
