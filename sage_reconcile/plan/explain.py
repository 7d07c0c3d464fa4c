"""Why something has no place, with the arithmetic."""

from sage_reconcile.model.desired import LaunchSpec
from sage_reconcile.model.observed import ObservedLaunch
from sage_reconcile.plan.memory import Account, Ledger, missing_mib
from sage_reconcile.plan.need import source_of

SHOWN = 4
"""GPUs that are named one by one: a fleet has hundreds."""


def shortage(spec: LaunchSpec, wanted: tuple[int | str, ...] | None, ledger: Ledger) -> str:
    """The need and, GPU by GPU, what is free and who holds the rest; `wanted` are the pinned GPUs."""
    count = spec.gpu_count
    if wanted:
        named = [a for a in ledger.accounts.values() if a.gpu.index in wanted or a.gpu.uuid in wanted]
        if not named:
            return f"no node has the GPUs {', '.join(map(str, wanted))}"
        if not any(_has_all(group, wanted) for group in ledger.by_node.values()):
            return f"no node has all of the GPUs {', '.join(map(str, wanted))}"
        named.sort(key=lambda a: (-a.free_in_the_end, a.gpu.node, a.gpu.index))
        total, shown = len(named), named[:SHOWN]
    else:
        most = max(len(group) for group in ledger.by_node.values())
        if most < count:
            return f"needs {count} GPUs on one node (TP x PP), the largest node has {most}"
        leased = [account for account in ledger.accounts.values() if account.lease]
        total, shown = len(ledger.accounts), [*ledger.emptiest(SHOWN), *leased[:SHOWN]]
    total_mib = shown[0].gpu.total_mib
    need = ledger.need(spec, total_mib) or 0
    source = source_of(spec, total_mib, ledger.known.of(spec, total_mib))
    why = f" ({source})" if source else ""
    more = [f"{total - len(shown)} more with no more free"] if total > len(shown) else []
    gpus = [_line(account) for account in shown]
    return f"needs {need:,} MiB on {count} GPU{'s' if count > 1 else ''}{why}; " + "; ".join([*gpus, *more])


def no_room_to_wake(launch: ObservedLaunch, accounts: tuple[Account, ...]) -> str:
    """What a launch that sleeps lacks where it sleeps."""
    lacks = [f"needs {missing_mib(launch, a):,} MiB more on {_line(a)}" for a in accounts]
    return "no room to wake up: " + "; ".join(lacks)


def _has_all(group: list[Account], wanted: tuple[int | str, ...]) -> bool:
    names = {name for a in group for name in (a.gpu.index, a.gpu.uuid)}
    return names.issuperset(wanted)


def _line(account: Account) -> str:
    gpu = account.gpu
    if account.lease:
        return f"{gpu.node} GPU {gpu.index}: {account.lease}"
    others = f", {account.foreign:,} used by others" if account.foreign else ""
    return f"{gpu.node} GPU {gpu.index}: {account.free_in_the_end:,} of {gpu.total_mib:,} MiB free{others}"
