"""Ports that sage gives out or that the stack pins, and who else holds them."""

from collections.abc import Collection, Iterator

from sage_reconcile.doctor.finding import Finding, fault, ok, warning
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState, PortHolder
from sage_reconcile.plan.ports import RANGES


def check_ports(
    observed: ObservedState, desired: DesiredState | None, gateway_port: int, gateway_pids: Collection[int]
) -> Iterator[Finding]:
    """The gateway's port, each pinned one, and the ranges of automatic ones. Own engines do not count."""
    gaps = [gap for gap in observed.gaps if gap.what == "ports"]
    if gaps:
        yield fault("ports", gaps[0].reason, "sage needs /proc; a sandbox may hide it")
        return
    others = _others(observed)
    yield from _gateway(others, gateway_port, gateway_pids)
    for engine in desired.engines if desired else ():
        if engine.placement.port is None or engine.launch.is_external:
            continue
        for port in range(engine.placement.port, engine.placement.port + engine.replicas):
            if port in others:
                hint = "end it, or give the engine another port; its plan is blocked until then"
                yield fault(f"port {port}", f"{engine.name} pins it, held by {_who(others[port])}", hint)
    for kind, numbers in RANGES.items():
        taken = [others[port] for port in numbers if port in others]
        about = f"ports {numbers[0]}-{numbers[-1]}"
        if len(taken) == len(numbers):
            yield fault(about, f"all of the range for {kind} engines are taken", "pin ports outside of it")
        elif taken:
            held = ", ".join(f"{holder.port} ({_who(holder)})" for holder in taken[:5])
            more = f" and {len(taken) - 5} more" if len(taken) > 5 else ""
            yield ok(about, f"{len(numbers) - len(taken)} free for {kind} engines; others hold {held}{more}")
        else:
            yield ok(about, f"all free for {kind} engines")


def _gateway(others: dict[int, PortHolder], port: int, pids: Collection[int]) -> Iterator[Finding]:
    about = f"port {port}"
    holder = others.get(port)
    if holder is None:
        yield ok(about, "free for the gateway")
    elif holder.pid in pids:
        yield ok(about, f"the gateway's (process {holder.pid})")
    else:
        hint = "end it, or `sage gateway start --port` another one"
        yield warning(about, f"wanted by the gateway, held by {_who(holder)}", hint)


def _others(observed: ObservedState) -> dict[int, PortHolder]:
    pids = {pid for launch in observed.launches for pid in launch.pids}
    pids |= {pid for orphan in observed.orphans for pid in orphan.pids}
    return {holder.port: holder for node in observed.nodes for holder in node.ports if holder.pid not in pids}


def _who(holder: PortHolder) -> str:
    return f"process {holder.pid} ({holder.name})" if holder.pid else "a process of another user"
