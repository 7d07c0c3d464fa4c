"""`sage service`: started at boot."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts

from sage_reconcile.cli.stackfile import Json

if TYPE_CHECKING:
    from sage_reconcile.service.unit import Scope, Service

app = cyclopts.App(
    name="service",
    help="Let systemd start gateway and engines at boot.\n\nExample: sage service install --stack sage.yaml",
)

Stack = Annotated[
    Path | None, cyclopts.Parameter(help="The stack file; sage.yaml or stack.yaml when left out.")
]
User = Annotated[
    bool | None,
    cyclopts.Parameter(
        name="--user",
        negative="--system",
        help="A unit of this user, or of the host; else by who asks: of the host for root.",
    ),
]
Name = Annotated[str, cyclopts.Parameter(help="Name of the unit; one for each SAGE_HOME.")]


@app.command
def install(
    *,
    stack: Stack = None,
    user: User = None,
    name: Name = "sage-gateway",
    print_: Annotated[
        bool, cyclopts.Parameter(name="--print", negative="", help="Only print the unit.")
    ] = False,
    no_start: Annotated[
        bool, cyclopts.Parameter(negative="", help="Start it at the next boot, not now.")
    ] = False,
) -> int:
    """Write the unit of `sage gateway start --foreground --stack FILE`, enable it and start it.

    Variables that the file refers to go into $SAGE_HOME/NAME.env (mode 0600), with this shell's values.

    Without systemd it says what to use instead, and exits with 1. Installing again changes what differs.

    Example: sage service install --stack /srv/stacks/production.yaml
    """
    import os
    import sys

    from sage_reconcile.cli.files import write_text
    from sage_reconcile.cli.stackfile import load_stack, stack_paths
    from sage_reconcile.home import Home
    from sage_reconcile.service import systemd
    from sage_reconcile.service.describe import describe, write_environment
    from sage_reconcile.service.unit import instead, unit_text

    [path] = stack_paths(stack, None)
    loaded = load_stack(path, None, None, portable=True)
    scope, home = _scope(user), Home.from_environ()
    service = describe(home, path, scope, _checked(name), os.environ)
    text = unit_text(service)
    if print_:
        print(text, end="")
        return 0
    if not systemd.is_there(scope):
        print(f"error: no systemd takes {scope} units here; use instead one of these", file=sys.stderr)
        print(instead(service), end="")
        return 1
    home.ensure()
    missing = write_environment(Path(service.env_file), loaded, os.environ)
    for variable in missing:
        print(f"note: {variable} is not set: give it in {service.env_file}", file=sys.stderr)
    unit = systemd.unit_folder(scope) / f"{name}.service"
    is_new = not unit.exists() or unit.read_text(encoding="utf-8") != text
    if is_new:
        _make_folder(unit.parent)
        write_text(unit, text)
        systemd.order(scope, "daemon-reload")
    systemd.order(scope, "enable", unit.name)
    if not no_start:
        systemd.order(scope, "restart" if is_new else "start", unit.name)
    print(f"{unit}: {'written' if is_new else 'unchanged'}, enabled{'' if no_start else ', started'}.")
    _tell(service)
    return 0


@app.command
def uninstall(*, user: User = None, name: Name = "sage-gateway") -> int:
    """Stop and remove the unit; engines keep running, and so does what they serve once a gateway is started.

    Example: sage service uninstall
    """
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.home import Home
    from sage_reconcile.service import systemd
    from sage_reconcile.service.describe import env_file

    scope = _scope(user)
    unit = systemd.unit_folder(scope) / f"{_checked(name)}.service"
    if not unit.exists():
        print(f"{unit} is not there: nothing was done.")
        return 0
    if systemd.is_there(scope):
        systemd.order(scope, "disable", "--now", unit.name)
    try:
        unit.unlink()
    except OSError as error:
        raise PermanentError(f"{unit}: cannot be removed: {error.strerror}") from None
    if systemd.is_there(scope):
        systemd.order(scope, "daemon-reload")
    print(f"{unit}: removed. Engines keep running; `sage stop --all` ends them.")
    kept = env_file(Home.from_environ(), name)
    if kept.exists():
        print(f"{kept} stays: it holds secrets; remove it if nothing needs them.")
    return 0


@app.command
def status(*, user: User = None, name: Name = "sage-gateway", json: Json = False) -> int:
    """Show whether the unit is installed, enabled and active. Exit status 1 when it is not active.

    Example: sage service status --json
    """
    from sage_reconcile.home import Home
    from sage_reconcile.render.print import print_json
    from sage_reconcile.service import systemd
    from sage_reconcile.service.describe import env_file

    scope = _scope(user)
    unit = systemd.unit_folder(scope) / f"{_checked(name)}.service"
    is_there = systemd.is_there(scope)

    def asked(question: str) -> str:
        return (systemd.ask(scope, question, unit.name).out or "unknown") if is_there else "no systemd"

    variables = env_file(Home.from_environ(), name)
    shown = {
        "unit": str(unit),
        "installed": unit.exists(),
        "enabled": asked("is-enabled"),
        "active": asked("is-active"),
        "environment_file": str(variables) if variables.exists() else "",
    }
    if json:
        print_json({"version": 1, **shown})
    else:
        for key, value in shown.items():
            said = {True: "yes", False: "no", "": "none"}.get(value, value)
            print(f"{key.replace('_', ' '):<17} {said}")
    return 0 if shown["active"] == "active" else 1


def _scope(user: bool | None) -> "Scope":
    import os

    is_user = os.getuid() != 0 if user is None else user
    return "user" if is_user else "system"


def _checked(name: str) -> str:
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.stack.fields import is_name

    if not is_name(name):
        raise PermanentError(f'"{name}" cannot be the name of a unit: small letters, digits, hyphens')
    return name


def _make_folder(folder: Path) -> None:
    from sage_reconcile.errors import PermanentError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermanentError(f"{folder}: cannot be made: {error.strerror}") from None


def _tell(service: "Service") -> None:
    from sage_reconcile.service.systemd import lingers

    log = "journalctl --user" if service.scope == "user" else "journalctl"
    print(f"  log: {log} -u {service.name} -f; secrets: {service.env_file}")
    if service.scope == "user" and not lingers(service.user):
        print(f"  units of a user begin at login and end at logout: loginctl enable-linger {service.user}")
