"""`sage lease`."""

import os
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sage_reconcile.cli.stackfile import Json

if TYPE_CHECKING:
    from sage_reconcile.home import Home
    from sage_reconcile.model.observed import ObservedGpu, ObservedState

Gpu = Annotated[str | None, Parameter(help="The GPU, by its index or UUID; `sage status` shows both.")]


def lease(  # noqa: PLR0913 - one parameter per option
    gpu: Gpu = None,
    /,
    *,
    until: Annotated[
        str | None, Parameter(help="When it ends: 2h, 18:30, or 2026-12-24 18:30 in local time.")
    ] = None,
    reason: Annotated[str | None, Parameter(help="What for; plans and status show it.")] = None,
    asleep: Annotated[
        bool, Parameter(negative="", help="Engines that can sleep stay there asleep, instead of ending.")
    ] = False,
    list: Annotated[bool, Parameter(name="--list", negative="", help="Show leases.")] = False,
    end: Annotated[
        str | None, Parameter(name="--end", help="End the lease of this GPU before its time.")
    ] = None,
    json: Json = False,
) -> int:
    """Keep engines off a GPU until a time. Without options, leases are shown.

    Engines on it move to another GPU that has room, or end, and start again when the lease is over.

    Example: sage lease 0 --until 2h --reason "fine-tuning"
    """
    from sage_reconcile.errors import PermanentError

    if (list or json) + (gpu is not None) + (end is not None) > 1:
        raise PermanentError("one at a time: GPU --until T --reason R, --list, or --end GPU")
    if end is not None:
        return _end(end)
    if gpu is not None:
        return _grant(gpu, until, reason, asleep)
    if until or reason or asleep:
        raise PermanentError("which GPU? `sage lease GPU --until T --reason R`; `sage status` lists them")
    return _show(json)


def _show(as_json: bool) -> int:
    from sage_reconcile.render.print import print_json
    from sage_reconcile.render.status import lease_data, leased

    _, observed = _look()
    found = leased(observed)
    if as_json:
        print_json([lease_data(gpu, lease) for gpu, lease in found])
        return 0
    for gpu, lease in found:
        print(f"GPU {gpu.index} ({gpu.name}, {gpu.uuid}) is {lease}")
    if not found:
        print("no GPU is leased")
    return 0


def _end(name: str) -> int:
    from sage_reconcile import leases
    from sage_reconcile.errors import PermanentError

    home, observed = _look()
    gpu = _find(observed, name)
    lease = observed.lease_of((gpu.uuid,))
    if lease is None:
        raise PermanentError(f"GPU {gpu.index} is not leased; `sage lease --list` shows what is")
    leases.end(home.claim(), lease)
    print(f"the lease of GPU {gpu.index} has ended; {_who_acts(home, 'uses it again')}")
    return 0


def _grant(name: str, until: str | None, reason: str | None, asleep: bool) -> int:
    from sage_reconcile import leases
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.home import user_name
    from sage_reconcile.model.observed import Lease

    if not until or not reason:
        missing = " and ".join(n for n, given in (("--until", until), ("--reason", reason)) if not given)
        raise PermanentError(f"{missing} is missing: `sage lease {name} --until 2h --reason fine-tuning`")
    now = time.time()
    at = end_of(until, now)
    home, observed = _look()
    gpu = _find(observed, name)
    ends = datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S").removesuffix(":00")
    lease = Lease(gpu.uuid, at, ends, user_name(os.getuid()), " ".join(reason.split()), asleep)
    try:
        leases.grant(home.claim(), lease, now)
    except PermanentError as error:
        raise PermanentError(f"GPU {gpu.index}: {error}") from None
    print(f"GPU {gpu.index} ({gpu.name}) is {lease}")
    there = sorted(str(one.replica) for one in observed.launches if gpu.uuid in one.mark.placement.gpus)
    if there:
        print(f"on it now: {', '.join(there)}")
    print(_who_acts(home, "frees it"))
    return 0


def _look() -> "tuple[Home, ObservedState]":
    import asyncio

    from sage_reconcile.home import Home
    from sage_reconcile.observe.look import LocalEyes

    home = Home.from_environ()
    return home, asyncio.run(LocalEyes(home).look())


def end_of(until: str, now: float) -> float:
    """Epoch seconds of a duration from now, a time of today (of tomorrow, if that is over), or a date.

    Raises PermanentError for what is none of them, or is over.
    """
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.stack.units import parse_duration

    text = until.strip()
    try:
        at = now + parse_duration(text)
    except ValueError:
        at = _clock_time(text, now)
    if not now < at < now + timedelta(days=3660).total_seconds():
        raise PermanentError(f"--until {until} is over already, or ten years away")
    return at


def _clock_time(text: str, now: float) -> float:
    from sage_reconcile.errors import PermanentError

    today = datetime.fromtimestamp(now)
    try:
        if len(text) <= 5 and ":" in text:
            given = datetime.strptime(text, "%H:%M")
            same_day = today.replace(hour=given.hour, minute=given.minute, second=0, microsecond=0)
            return (same_day if same_day > today else same_day + timedelta(days=1)).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise PermanentError(
            f"--until {text} is no time; write 2h, 1h30m, 18:30, or 2026-12-24 18:30"
        ) from None


def _find(observed: "ObservedState", name: str) -> "ObservedGpu":
    """The GPU of this index or UUID. Raises PermanentError where there is none."""
    from sage_reconcile.errors import PermanentError

    found = [gpu for gpu in observed.gpus if name in (str(gpu.index), gpu.uuid)]
    if found:
        return found[0]
    gap = next((gap for gap in observed.gaps if gap.what == "gpus"), None)
    if gap is not None:
        raise PermanentError(f"GPU {name} cannot be seen: {gap.reason}")
    there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in observed.gpus)
    raise PermanentError(f"there is no GPU {name} on this host; there is {there or 'none'}")


def _who_acts(home: "Home", does: str) -> str:
    """Who carries out what a lease changes: a watcher at once, else the next apply."""
    from sage_reconcile.watching import watchers

    running = watchers(home)
    if running:
        return f"{', '.join(map(str, running))} {does}"
    return f"no watcher runs: `sage apply` {does}"
