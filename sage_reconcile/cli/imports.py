"""`sage import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from sage_reconcile.home import Home
    from sage_reconcile.importing.gather import Findings
    from sage_reconcile.model.actions import Outcome, Step

NOTHING = (
    "no engine was found that runs by hand: sage looks at what listens for this user and answers /v1/models"
)


def import_(
    *,
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="The file to write; left out, it is only printed."),
    ] = None,
    port: Annotated[
        list[int] | None,
        Parameter(name=["--port", "-p"], negative="", help="Only what listens there; may be repeated."),
    ] = None,
    name: Annotated[str, Parameter(help="Name of the stack.")] = "imported",
    force: Annotated[bool, Parameter(negative="", help="Overwrite the file.")] = False,
    no_apply: Annotated[
        bool, Parameter(negative="", help="Write the file, and leave the gateway's routes as they are.")
    ] = False,
) -> int:
    """Write a stack file of the engines that run by hand on this host, and route to them.

    With -o their routes are published at once, which no process notices; planning again shows no changes.

    Each is `runtime: external`; below it stands, commented out, what sage would start instead.

    Example: sage import -o sage.yaml
    """
    import asyncio
    import os
    import sys

    from sage_reconcile.cli.files import write_text
    from sage_reconcile.errors import BlockedError, PermanentError
    from sage_reconcile.home import Home
    from sage_reconcile.importing.gather import gather
    from sage_reconcile.importing.text import stack_text
    from sage_reconcile.stack.fields import is_name

    if not is_name(name):
        raise PermanentError(f'"{name}" cannot be the name of a stack: small letters, digits, hyphens')
    if output is not None and output.exists() and not force:
        raise PermanentError(f"{output} exists already; --force overwrites it, or name another file")
    home = Home.from_environ()
    found = asyncio.run(gather(home, os.environ, port or ()))
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    if not found.entries:
        raise BlockedError(NOTHING)
    text = stack_text(name, found.host, found.runtimes, found.entries)
    if output is None:
        print(text, end="")
        return 0
    write_text(output, text)
    print(f"{output}: {len(found.entries)} engines, {_listed(found)}")
    for variable in found.keys:
        print(f"  set {variable} to the engine's key wherever sage and its gateway run")
    return 0 if no_apply else _prove(output, home, found)


def _listed(found: "Findings") -> str:
    return ", ".join(f"{entry.fields['name']} ({entry.fields['url']})" for entry in found.entries)


def _prove(path: Path, home: "Home", found: "Findings") -> int:
    """Publishes the routes, then plans again: nothing must be left to do."""
    import asyncio
    import os
    import sys

    from sage_reconcile.apply.execute import Options
    from sage_reconcile.applying import apply_survey, remember
    from sage_reconcile.converge import Host, local_host, survey
    from sage_reconcile.errors import BlockedError
    from sage_reconcile.lock import applying
    from sage_reconcile.model.actions import Reroute
    from sage_reconcile.observe.look import LocalEyes
    from sage_reconcile.render.plan_text import headline
    from sage_reconcile.stack.load import load
    from sage_reconcile.stack.resolve import resolve

    environ = {**os.environ, **{key: value for key, value in found.keys.items() if key not in os.environ}}
    stack = load([path], environ)
    desired = resolve(stack)
    host = Host(home, LocalEyes(home, environ=environ), local_host(home).hands)
    with applying(home, lambda text: print(text, file=sys.stderr)):
        before = asyncio.run(survey(desired, host.eyes))
        actions = [action for step in before.plan.steps for action in step.actions]
        if before.plan.blocked or not all(isinstance(action, Reroute) for action in actions):
            raise BlockedError(
                f"{path} is written, and nothing was applied: stack {desired.stack} exists already in "
                f"{home.root}, and its plan is more than routes; see `sage plan {path}`, or use --name"
            )
        applied = apply_survey(before, host, _Quiet(), Options())
        remember(home, stack, applied, "import")
        after = asyncio.run(survey(desired, host.eyes))
    for note in after.plan.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"Adopted without touching a process. Planning again: {headline(after.plan)}")
    return 1 if after.plan.has_changes or not applied.is_whole else 0


class _Quiet:
    """Publishing routes takes no time that would be worth showing."""

    def started(self, step: "Step") -> None:
        pass

    def acting(self, step: "Step", doing: str, launch: object) -> None:
        pass

    def ended(self, outcome: "Outcome") -> None:
        pass
