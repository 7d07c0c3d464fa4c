"""`sage events`."""

import time
from typing import Annotated, Any

from cyclopts import Parameter, validators

from sage_reconcile import journal
from sage_reconcile.cli.stackfile import Json
from sage_reconcile.cli.tail import Follow
from sage_reconcile.home import Home
from sage_reconcile.render.print import print_json

TICK = 0.3


def events(
    *,
    follow: Follow = False,
    lines: Annotated[
        int,
        Parameter(
            name=["--lines", "-n"], validator=validators.Number(gte=0), help="How many events to begin with."
        ),
    ] = 50,
    json: Json = False,
) -> int:
    """Show what happened: starts, stops, crashes, applies, bad edits.

    Example: sage events -n 20
    """
    home = Home.from_environ()
    known = list(journal.read(home))
    first = max(0, len(known) - lines)
    if json:
        print_json(known[first:])
        return 0
    for event in known[first:]:
        print(_line(event))
    seen = len(known)
    while follow:
        time.sleep(TICK)
        known = list(journal.read(home))
        # The oldest half goes when the journal is rotated; what is new is then not told twice.
        for event in known[seen:] if len(known) >= seen else []:
            print(_line(event), flush=True)
        seen = len(known)
    return 0


def _line(event: dict[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.get("at", 0)))
    return f"{at}  {event.get('kind', ''):<16} {event.get('subject', ''):<24} {event.get('message', '')}"
