"""`sage doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from sage_reconcile.cli.stackfile import DEFAULTS, Json

if TYPE_CHECKING:
    from sage_reconcile.doctor.finding import Finding
    from sage_reconcile.model.desired import DesiredState

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def doctor(
    file: Annotated[
        Path | None, Parameter(help="The stack to run here; sage.yaml or stack.yaml where there is one.")
    ] = None,
    /,
    *,
    json: Json = False,
    import_timeout: Annotated[
        float,
        Parameter(
            validator=validators.Number(gte=0, lte=600),
            help="Seconds that importing a runtime may take; 0 imports nothing.",
        ),
    ] = 15.0,
) -> int:
    """Check driver, runtimes, limits, disks and ports; each finding with what to do next.

    Exit status 1 when there is a fault, 0 with warnings only. Changes nothing.

    Example: sage doctor sage.yaml
    """
    import asyncio
    import os

    from sage_reconcile.doctor.examine import Patient, examine
    from sage_reconcile.home import Home
    from sage_reconcile.render.print import print_json

    desired, found = _stack(file)
    found += asyncio.run(examine(Patient(Home.from_environ(), desired, os.environ, import_timeout)))
    counts = {word: sum(one.verdict == word for one in found) for word in STYLES}
    if json:
        checks = [
            {"about": f.about, "verdict": str(f.verdict), "message": f.message, "next": f.next} for f in found
        ]
        print_json({"version": 1, "checks": checks, "summary": counts})
    else:
        _print(found, counts)
    return 1 if counts["fault"] else 0


def _stack(file: Path | None) -> tuple["DesiredState | None", list["Finding"]]:
    """The stack that is meant, and what is wrong with its file."""
    from sage_reconcile.cli.stackfile import load_stack
    from sage_reconcile.doctor.examine import stack_findings
    from sage_reconcile.doctor.finding import ok
    from sage_reconcile.errors import StackError
    from sage_reconcile.stack.resolve import resolve

    path = file or next((Path(name) for name in DEFAULTS if Path(name).exists()), None)
    if path is None:
        return None, []
    try:
        desired = resolve(load_stack(path, None, None))
    except StackError as error:
        return None, stack_findings(error)
    return desired, [ok("stack file", f"{path}: {len(desired.engines)} engines")]


def _print(found: list["Finding"], counts: dict[str, int]) -> None:
    from rich.text import Text

    from sage_reconcile.render.clean import one_line
    from sage_reconcile.render.print import console

    out = console()
    for one in found:
        line = Text(f"{one.verdict:<8}", style=STYLES[one.verdict])
        line.append(f" {one_line(one.about)}: {one_line(one.message)}", style="default")
        out.print(line)
        if one.next:
            out.print(Text(f"{'':<8}   -> {one_line(one.next)}", style="dim"))
    words = [f"{count} {word}{'' if count == 1 or word == 'ok' else 's'}" for word, count in counts.items()]
    out.print(Text(", ".join(words) + "."))
