"""GPUs: a table, a bar for each with every byte's owner, and the same numbers as JSON. In MiB."""

from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from sage_reconcile.model.observed import ObservedState
from sage_reconcile.plan.attribution import GpuShares, Owner, Share, attribution
from sage_reconcile.render.clean import one_line
from sage_reconcile.render.folding import Folding

CELLS = 60
RESERVED = "▒"
# Told apart by shape as well as by colour.
SIGNS = {
    Owner.LAUNCH: ("█", "green"),
    Owner.ADOPTED: ("▓", "cyan"),
    Owner.ORPHANED: ("x", "red"),
    Owner.FOREIGN: ("#", "yellow"),
    Owner.UNATTRIBUTED: ("?", "magenta"),
    Owner.FREE: ("·", "dim"),
}


def gpus_view(observed: ObservedState) -> RenderableType:
    """The table of GPUs, and below it for each that is not empty a bar and its owners."""
    found = attribution(observed)
    parts: list[RenderableType] = [Folding(_table(found))]
    for gpu in found:
        if any(share.owner is not Owner.FREE for share in gpu.shares):
            parts += [Text(""), Text(_name(gpu), "bold"), Bar(gpu), *(_owner(share) for share in gpu.shares)]
    return Group(*parts)


def gpus_data(observed: ObservedState) -> list[dict[str, Any]]:
    """The `gpus` part of `sage status --json`. `owners` with what is reserved add up to `memory_total_mib`;
    `memory_free_mib` is what a plan may use."""
    return [_data(gpu, observed) for gpu in attribution(observed)]


def _data(one: GpuShares, observed: ObservedState) -> dict[str, Any]:
    account, gpu = one.account, one.account.gpu
    return {
        "node": gpu.node,
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory_total_mib": gpu.total_mib,
        "memory_used_mib": gpu.used_mib,
        "memory_free_mib": account.free,
        "foreign_mib": account.foreign,
        "utilization": gpu.utilization,
        "engines": sorted(
            launch.mark.id for launch in observed.launches if gpu.uuid in launch.mark.placement.gpus
        ),
        "owners": [
            {
                "owner": str(share.owner),
                "name": share.name,
                "mib": share.mib,
                "reserved_mib": share.reserved_mib,
                "pids": list(share.pids),
            }
            for share in one.shares
        ],
        "is_mock": gpu.is_mock,
    }


def _table(found: tuple[GpuShares, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("GPU", "NAME", "TOTAL MIB", "OURS", "OTHERS", "FREE", "UTIL"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("GPU", "NAME") else "right")
    for one in found:
        account, gpu = one.account, one.account.gpu
        numbers = (gpu.total_mib, sum(account.held.values()), account.foreign, account.free)
        busy = "-" if gpu.utilization is None else f"{gpu.utilization} %"
        table.add_row(_name(one), gpu.name, *(f"{number:,}" for number in numbers), busy)
    return table


def _name(one: GpuShares) -> str:
    return f"{one.account.gpu.node} {one.account.gpu.index}"


def _owner(share: Share) -> Text:
    sign, style = SIGNS[share.owner]
    who = share.name or str(share.owner)
    if share.owner is Owner.FOREIGN:
        who = f"{who}, not ours"
    elif share.name and share.owner is not Owner.LAUNCH:
        who = f"{who}, {share.owner}"
    if share.owner in (Owner.FOREIGN, Owner.ORPHANED) and share.pids:
        who += f" (process {', '.join(map(str, share.pids))})"
    if share.owner is Owner.UNATTRIBUTED:
        who += " (no process is seen that holds it)"
    more = f", {RESERVED} {share.reserved_mib:,} more counted" if share.reserved_mib else ""
    return Text.assemble((f"  {sign} ", style), one_line(f"{who}: {share.mib:,} MiB{more}"))


class Bar:
    """One GPU as a row of cells, as many as there is room for."""

    def __init__(self, one: GpuShares) -> None:
        self._one = one

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield bar(self._one, min(CELLS, max(4, options.max_width - 4)))


def bar(one: GpuShares, cells: int) -> Text:
    """`cells` signs in brackets. Each share ends at its rounded place, so that the row is always full."""
    total = max(1, one.account.gpu.total_mib)
    drawn, upto = 0, 0
    text = Text("  [")
    for share in one.shares:
        sign, style = SIGNS[share.owner]
        for mib, shape in ((share.mib, sign), (share.reserved_mib, RESERVED)):
            upto += mib
            end = min(cells, round(upto * cells / total))
            text.append(shape * (end - drawn), style)
            drawn = end
    return text.append("]")
