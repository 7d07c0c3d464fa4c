"""The watcher's work on adhoc.yaml inside a program: what should run is started again, without a word."""

import asyncio
import os
from collections.abc import Mapping

from sage_reconcile.apply.execute import Options
from sage_reconcile.applying import Applied, Noted, remember
from sage_reconcile.control.edits import Told, Work, turn
from sage_reconcile.converge import Host, carry_out, survey
from sage_reconcile.errors import TransientError
from sage_reconcile.model.actions import Plan, Result
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.plan.policy import Policy
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve
from sage_reconcile.supervisor import tree
from sage_reconcile.watch import PassResult


class Keeping:
    """See watch.Work. What happens is in the journal: `sage events`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._supervisors: tuple[int, ...] = ()

    def load(self) -> tuple[StackFile, DesiredState]:
        stack = load([self._host.home.adhoc_file], os.environ)
        return stack, resolve(stack)

    async def make_pass(
        self, stack: StackFile, desired: DesiredState, policy: Policy, interrupt: asyncio.Event
    ) -> PassResult:
        work = Work()
        follower = asyncio.create_task(_cancel_on(interrupt, work))
        try:
            async with turn(self._host, work):
                found = await survey(desired, self._host.eyes, policy)
                noted = Noted(self._host.home, desired.stack, Told(work.say))
                outcomes = await carry_out(found, self._host, noted, Options(), work.executors)
                if found.plan.has_changes:
                    remember(self._host.home, stack, Applied(found.plan, outcomes), note="control plane")
        except TransientError:
            if not interrupt.is_set():
                raise
            return PassResult(Plan(desired.stack))
        finally:
            follower.cancel()
        seen = await self._host.eyes.look(desired)
        self._supervisors = tuple(one.supervisor_pid for one in seen.launches)
        failed = tuple((o.step.replica, o.reason) for o in outcomes if o.result is Result.FAILED)
        return PassResult(found.plan, failed)

    def pulse(self) -> Mapping[object, object]:
        return {pid: tree.is_alive(pid) for pid in self._supervisors}

    def is_asked(self) -> bool:
        """Who waits for an engine on demand is seen at the next pass; at once only by `sage watch`."""
        return False

    def say(self, text: str) -> None:
        """A program has no terminal to talk to."""


async def _cancel_on(interrupt: asyncio.Event, work: Work) -> None:
    await interrupt.wait()
    work.cancel()
