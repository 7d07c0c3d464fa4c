"""One pass over a stack: look, publish, reconcile, execute, look, publish. Strings the stages together."""

import asyncio
import time
from dataclasses import dataclass, replace

from sage_reconcile import facts, gatewayd
from sage_reconcile.apply.environment import runtime_notes
from sage_reconcile.apply.execute import Executor, Options, Progress
from sage_reconcile.apply.hands import Hands
from sage_reconcile.apply.local import LocalHands, Senses
from sage_reconcile.apply.timing import TimedHands
from sage_reconcile.errors import TransientError
from sage_reconcile.home import Home
from sage_reconcile.model.actions import Launch, Outcome, Plan, Verdict
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import Health, Mark, ObservedGpu, ObservedLaunch, ObservedState
from sage_reconcile.observe import records
from sage_reconcile.observe.gpus import read_gpus
from sage_reconcile.observe.look import Eyes, LocalEyes
from sage_reconcile.plan.learning import blank, learned
from sage_reconcile.plan.policy import Policy
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.route import publish
from sage_reconcile.route.table import route_notes, routing_table

FRESH_S = 2.0
"""A look that is no older than this is not repeated before anything is done, in seconds."""


@dataclass(frozen=True, slots=True)
class Host:
    """The doors to one host: what sees it, what changes it, and where its routes are published."""

    home: Home
    eyes: Eyes
    hands: Hands


def local_host(home: Home) -> Host:
    """This host."""
    eyes = LocalEyes(home)

    def gpus() -> tuple[ObservedGpu, ...]:
        return read_gpus(eyes.node, eyes.environ)[0]

    def in_flight(backend: str) -> int | None:
        return gatewayd.in_flight(home, backend, publish.digest(home.routing_file))

    async def note(mark: Mark, what: str, seconds: float) -> None:
        empty = blank(mark, await asyncio.to_thread(gpus) if mark.placement.gpus else (), time.time())
        if empty is not None:
            await asyncio.to_thread(facts.note, home, empty, what, seconds)

    return Host(home, eyes, TimedHands(LocalHands(home, Senses(gpus, in_flight)), note))


class PublishedRoutes:
    """The routing table of one stack while a plan runs: what was withdrawn stays withdrawn."""

    def __init__(self, host: Host, desired: DesiredState, observed: ObservedState) -> None:
        self._host = host
        self._desired = desired
        self._observed = observed
        self._withdrawn: set[str] = set()
        self._turn = asyncio.Lock()

    @property
    def observed(self) -> ObservedState:
        """The last look."""
        return self._observed

    async def publish(self) -> None:
        """Looks again and publishes. One look at a time, so that no older one is published over a newer."""
        async with self._turn:
            self._observed = await self._host.eyes.look(self._desired)
            await self._write()

    async def begin(self) -> None:
        """Publishes from the look that the plan was made of, unless somebody thought about it for a while."""
        if abs(time.time() - self._observed.at) > FRESH_S:
            await self.publish()
            return
        async with self._turn:
            await self._write()

    async def admit(self, launch: ObservedLaunch) -> None:
        """Publishes at once, from the last look, that `launch` has answered."""
        async with self._turn:
            launches = tuple(
                replace(one, health=Health.READY) if one.mark.id == launch.mark.id else one
                for one in self._observed.launches
            )
            self._observed = replace(self._observed, launches=launches)
            await self._write()

    async def withdraw(self, launch: ObservedLaunch) -> None:
        """Publishes at once, from the last look."""
        async with self._turn:
            self._withdrawn.add(launch.mark.id)
            await self._write()

    async def restore(self, launch: ObservedLaunch) -> None:
        """Takes a withdrawal back."""
        async with self._turn:
            self._withdrawn.discard(launch.mark.id)
            await self._write()

    async def _write(self) -> None:
        path = self._host.home.routing_file
        table = routing_table(self._desired, self._observed, frozenset(self._withdrawn))
        try:
            await asyncio.to_thread(publish.publish, path, table)
        except OSError as error:
            raise TransientError(f"cannot publish routes to {path}: {error.strerror}") from error
        self._observed = replace(self._observed, routing=table)


@dataclass(frozen=True, slots=True)
class Survey:
    """A look and the plan that was made of it."""

    desired: DesiredState
    observed: ObservedState
    plan: Plan


async def survey(desired: DesiredState, eyes: Eyes, policy: Policy | None = None) -> Survey:
    """Looks and plans; changes nothing."""
    return plan_for(desired, await eyes.look(desired), policy)


def plan_for(desired: DesiredState, observed: ObservedState, policy: Policy | None = None) -> Survey:
    """Plans from a look that was had already, or from a described fleet."""
    plan = reconcile(desired, observed, policy or Policy())
    plan = replace(plan, notes=(*plan.notes, *route_notes(desired, observed)))
    return Survey(desired, observed, plan)


def with_host_notes(survey: Survey, home: Home) -> Survey:
    """The survey with what the user of this host should know before anything is started."""
    starts = (
        action.spec for step in survey.plan.steps for action in step.actions if isinstance(action, Launch)
    )
    notes = (*survey.plan.notes, *runtime_notes(starts, home))
    return replace(survey, plan=replace(survey.plan, notes=notes))


async def carry_out(
    survey: Survey,
    host: Host,
    progress: Progress,
    options: Options,
    executors: "list[Executor] | None" = None,
) -> tuple[Outcome, ...]:
    """Publishes what is, executes the plan, publishes what has become. `executors` receives the executor,
    so that a caller can cancel it.

    Raises TransientError where routes cannot be published: before anything is begun, unless the plan only
    ends processes, which a full disk must not prevent.
    """
    routes = PublishedRoutes(host, survey.desired, survey.observed)
    try:
        await routes.begin()
    except TransientError:
        if {step.verdict for step in survey.plan.steps} not in ({Verdict.STOP}, {Verdict.STOP, Verdict.REAP}):
            raise
    executor = Executor(host.hands, routes, progress, options)
    if executors is not None:
        executors.append(executor)
    outcomes = await executor.execute(survey.plan)
    if survey.plan.steps:
        await routes.publish()
        seen = routes.observed
        marks = [*(one.mark for one in seen.launches), *(one.mark for one in seen.orphans)]
        alive = {mark.launch for mark in marks}
        await asyncio.to_thread(records.prune, host.home, alive)
    await asyncio.to_thread(facts.write, host.home, learned(routes.observed))
    return outcomes
