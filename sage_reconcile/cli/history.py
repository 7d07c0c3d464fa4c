"""`sage history` and `sage rollback`."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from sage_reconcile import history as records
from sage_reconcile.apply.execute import Options
from sage_reconcile.applying import remember
from sage_reconcile.cli.apply import NoWait, Timeout, Yes, confirm, perform, report
from sage_reconcile.cli.stackfile import Json
from sage_reconcile.converge import Survey, local_host, survey
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.lock import applying
from sage_reconcile.render.folding import Folding
from sage_reconcile.render.print import console, print_json
from sage_reconcile.stack.problems import did_you_mean

Stack = Annotated[str | None, Parameter(help="The stack; may be left out while there is only one.")]


def history(*, stack: Stack = None, json: Json = False) -> int:
    """List what was applied: when, from which commit, and how it ended.

    Example: sage history --stack quickstart
    """
    home = Home.from_environ()
    known = records.entries(home, _applied_stack(home, stack) if stack else None)
    if json:
        print_json([{name: getattr(entry, name) for name in records.Entry.__slots__} for entry in known])
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("STACK", "N", "WHEN", "DIGEST", "COMMIT", "RESULT", "WHAT"):
        table.add_column(name, no_wrap=True)
    for entry in known:
        what = f"{entry.summary}{f' ({entry.note})' if entry.note else ''}"
        table.add_row(
            *(entry.stack, str(entry.number), _when(entry)),
            *(entry.digest, entry.commit or "-", entry.result, what),
        )
    console().print(Folding(table) if known else "nothing was applied yet")
    return 0


def rollback(
    number: Annotated[int | None, Parameter(help="Entry of `sage history`; the last good one else.")] = None,
    /,
    *,
    stack: Stack = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    yes: Yes = False,
) -> int:
    """Apply an earlier entry of the history again. The stack file is not touched: revert it in git too.

    Example: sage rollback 3 --yes
    """
    from sage_reconcile.stack.load import from_document
    from sage_reconcile.stack.resolve import resolve

    home = Home.from_environ().claim()
    name = _applied_stack(home, stack) if stack else _only_stack(home)
    entry = records.entry_to_return_to(home, name, number)
    print(f"returning to entry {entry.number} of {name} ({entry.digest}, {_when(entry)})", flush=True)
    past = from_document(entry.document, Path(entry.base), entry.stack, os.environ)
    host = local_host(home)
    desired = resolve(past)

    def look() -> Survey:
        return asyncio.run(survey(desired, host.eyes))

    with applying(home, lambda text: print(text, file=sys.stderr)) as turn:
        agreed = confirm(look(), look, turn, yes)
        if agreed is None:
            return 1
        applied = perform(agreed, host, Options(not no_wait, timeout))
        remember(home, past, applied, note=f"rollback to {entry.number}")
    return report(applied)


def _when(entry: records.Entry) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))


def _stacks(home: Home) -> list[str]:
    return sorted({entry.stack for entry in records.entries(home)})


def _applied_stack(home: Home, name: str) -> str:
    """The name itself. Raises PermanentError when no such stack was ever applied."""
    stacks = _stacks(home)
    if name not in stacks:
        hint = did_you_mean(name, stacks) or f"there are: {', '.join(stacks) or 'none'}"
        raise PermanentError(f"no stack named {name} was applied; {hint}")
    return name


def _only_stack(home: Home) -> str:
    stacks = _stacks(home)
    if len(stacks) == 1:
        return stacks[0]
    if not stacks:
        raise PermanentError("nothing was applied yet: there is nothing to return to")
    raise PermanentError(f"there are several stacks: {', '.join(stacks)}; pass --stack")
