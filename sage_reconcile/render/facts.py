"""What was measured of engines, as a table, as a few words, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sage_reconcile.model.facts import Fact
from sage_reconcile.render.clean import one_line
from sage_reconcile.render.folding import Folding

NUMBERS = ("HELD MIB", "ASLEEP MIB", "START S", "SLEEP S", "WAKE S", "STOP S")


def facts_data(facts: Sequence[Fact]) -> dict[str, Any]:
    """The shape that `sage facts --json` promises; memory in MiB of one GPU, times in seconds."""
    plain = []
    for fact in facts:
        data = asdict(fact) | {"versions": dict(fact.versions)}
        del data["version"]
        plain.append(data)
    return {"version": 1, "facts": plain}


def facts_view(facts: Sequence[Fact]) -> RenderableType:
    if not facts:
        return Text("nothing was measured yet: `sage apply` and `sage watch` do, once engines are ready")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ENGINE", "FINGERPRINT", "GPU", *NUMBERS, "MEASURED", "VERSIONS"):
        table.add_column(
            name,
            no_wrap=name != "VERSIONS",
            overflow="fold",
            justify="right" if name in NUMBERS else "left",
        )
    for fact in facts:
        sizes = (fact.held_mib, fact.asleep_mib)
        times = (fact.start_seconds, fact.sleep_seconds, fact.wake_seconds, fact.stop_seconds)
        table.add_row(
            one_line(fact.engine),
            fact.fingerprint,
            one_line(fact.gpu) or "cpu",
            *("-" if size is None else f"{size:,}" for size in sizes),
            *("-" if seconds is None else f"{seconds:,.1f}" for seconds in times),
            when(fact),
            one_line(versions(fact)),
        )
    return Folding(table)


def when(fact: Fact) -> str:
    """The day of the measurement, in UTC."""
    return datetime.fromtimestamp(fact.at, UTC).strftime("%Y-%m-%d")


def versions(fact: Fact) -> str:
    return ", ".join(f"{name} {version}" for name, version in fact.versions)
