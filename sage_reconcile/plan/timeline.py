"""The memory of each GPU over a plan: as it is, at its worst moment, at the end."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate

from sage_reconcile.model.actions import GpuTimeline, StepMemory
from sage_reconcile.plan.memory import Account, Ledger


def timeline(ledger: Ledger, before: Mapping[str, tuple[str, ...]]) -> tuple[GpuTimeline, ...]:
    """One line a GPU; `before` has what each step waits for, in the order of the plan.

    What a step gives back is counted on for those that wait for it: others may run earlier.
    """
    waits = _Waits(before)
    order = tuple(before)
    return tuple(_line(account, waits, order) for account in ledger.accounts.values())


class _Waits:
    """Which steps are over when a step begins."""

    def __init__(self, before: Mapping[str, tuple[str, ...]]) -> None:
        self._before = before
        self._known: dict[str, frozenset[str]] = {}

    def of(self, step: str) -> frozenset[str]:
        """Everything that `step` waits for, directly or not."""
        if step not in self._known:
            direct = self._before.get(step, ())
            self._known[step] = frozenset(direct).union(*(self.of(other) for other in direct))
        return self._known[step]


def _line(account: Account, waits: _Waits, order: tuple[str, ...]) -> GpuTimeline:
    gpu, flow = account.gpu, account.flow
    before = peak = account.foreign + sum(account.held.values())
    gives = [(number, step, given) for number, (step, _, given) in enumerate(flow) if given]
    taken_so_far = 0
    for number, (step, taken, _) in enumerate(flow):
        if taken:
            taken_so_far += taken
            over = waits.of(step) if gives else frozenset()
            given = sum(mib for n, other, mib in gives if other in over or (other == step and n < number))
            peak = max(peak, before + taken_so_far - given)
    after = before + taken_so_far - sum(mib for _, _, mib in gives)
    steps = tuple(_steps(account, before, order))
    return GpuTimeline(gpu.node, gpu.index, gpu.uuid, gpu.name, gpu.total_mib, before, peak, after, steps)


def _steps(account: Account, level: int, order: tuple[str, ...]) -> Iterator[StepMemory]:
    """Each step that takes or gives something back, one after another."""
    changes: dict[str, list[int]] = defaultdict(list)
    for step, taken, given in account.flow:
        changes[step].append(taken - given)
    for step in order:
        if step in changes:
            levels = [level, *accumulate(changes[step], initial=level)]
            yield StepMemory(step, level, max(levels), levels[-1])
            level = levels[-1]
