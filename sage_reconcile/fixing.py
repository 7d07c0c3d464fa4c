"""From engines that did not start to edits of their stack file: what `sage apply --accept-fixes` writes."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sage_reconcile.converge import Survey
from sage_reconcile.engines.failures import Failure
from sage_reconcile.engines.fixes import fix_for
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.actions import Launch, Outcome, Result, Verdict
from sage_reconcile.model.desired import DesiredEngine
from sage_reconcile.model.fixes import Fix
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.patch import Change, Patch, Patcher

COMMAND = "sage apply --accept-fixes"

_STARTS = (Verdict.START, Verdict.REPLACE)


@dataclass(frozen=True, slots=True)
class Remedy:
    """One engine's fix: the values that change, or, without any, what to do `instead`."""

    engine: str
    cause: str
    why: str
    changes: tuple[Change, ...] = ()
    instead: str = ""

    @property
    def short(self) -> str:
        """One line, for logs and tables."""
        if self.changes:
            return f"a fix is known: {', '.join(map(str, self.changes))}: {COMMAND}"
        return f"what helps: {self.instead}"


@dataclass(frozen=True, slots=True)
class Remedies:
    """What would mend the engines, and the files as they would then be."""

    remedies: tuple[Remedy, ...] = ()
    patches: tuple[Patch, ...] = ()


NO_REMEDIES = Remedies()


@dataclass(frozen=True, slots=True)
class Source:
    """A stack as it was loaded: what edits of its files must know."""

    stack: StackFile
    sets: tuple[str, ...]
    home: Home

    def _remedies(self, failures: Iterable[Failure]) -> Remedies:
        """What mends these failures, one remedy for each engine; an unknown cause has none."""
        patcher = Patcher(self.stack, os.environ, self.sets)
        found: dict[str, Remedy] = {}
        for failure in failures:
            fix = fix_for(failure)
            if fix is not None and fix.engine not in found:
                found[fix.engine] = _remedy(fix, patcher)
        return Remedies(tuple(found.values()), patcher.patches)

    def of_outcomes(self, survey: Survey, outcomes: Sequence[Outcome]) -> Remedies:
        """What mends the steps that failed, and the replicas that are blocked because their port is taken."""
        models, ports = _models(self.home), _ports(survey)
        failures = _port_failures(survey, ports)
        for outcome in outcomes:
            engine = survey.desired.engine(outcome.step.replica.engine)
            if outcome.result is not Result.FAILED or not outcome.cause or engine is None:
                continue
            total = _gpu_total(survey, outcome.step.actions)
            found = Failure(engine, outcome.cause, outcome.said, outcome.tail, total, models, ports)
            failures.append(found)
        return self._remedies(failures)

    def of_the_past(self, survey: Survey) -> Remedies:
        """What mends the engines that the plan starts just as they failed before, or has to leave out."""
        exits = dict(survey.observed.exits)
        models, ports = _models(self.home), _ports(survey)
        failures = _port_failures(survey, ports)
        for step in survey.plan.steps:
            engine = survey.desired.engine(step.replica.engine)
            last = exits.get(step.replica)
            if step.verdict not in _STARTS or engine is None or last is None or not last.cause:
                continue
            if _is_as_before(engine, last.fingerprint) and not last.was_ready:
                total = _gpu_total(survey, step.actions)
                failures.append(Failure(engine, last.cause, last.said, last.tail, total, models, ports))
        return self._remedies(failures)


def with_known_fixes(survey: Survey, source: Source) -> Survey:
    """The survey with a note for each engine that would fail as before, and whose fix is known."""
    notes = (*survey.plan.notes, *known_fixes(survey, source))
    return replace(survey, plan=replace(survey.plan, notes=notes))


def known_fixes(survey: Survey, source: Source) -> tuple[str, ...]:
    """A line for each engine that would fail as before where an edit mends it."""
    found = source.of_the_past(survey)
    return tuple(f"{one.engine}: {one.cause}; {one.short}" for one in found.remedies if one.changes)


def _is_as_before(engine: DesiredEngine, fingerprint: str) -> bool:
    return bool(fingerprint) and fingerprint == engine.fingerprint


def _remedy(fix: Fix, patcher: Patcher) -> Remedy:
    if not fix.edits:
        return Remedy(fix.engine, fix.cause, fix.why, (), fix.instead)
    try:
        return Remedy(fix.engine, fix.cause, fix.why, patcher.add(fix))
    except PermanentError as error:
        edits = ", ".join(
            f"{'.'.join(map(str, edit.path))}: {edit.rename or edit.value}" for edit in fix.edits
        )
        return Remedy(fix.engine, fix.cause, fix.why, (), f"set {edits} ({error})")


def _gpu_total(survey: Survey, actions: Sequence[Any]) -> int | None:
    gpus = {uuid for action in actions if isinstance(action, Launch) for uuid in action.placement.gpus}
    return min((gpu.total_mib for gpu in survey.observed.gpus if gpu.uuid in gpus), default=None)


def _ports(survey: Survey) -> frozenset[int]:
    """Ports that something listens on, or that the file gives to an engine or to the gateway."""
    listening = {port.port for node in survey.observed.nodes for port in node.ports}
    pinned = {
        engine.placement.port + replica
        for engine in survey.desired.engines
        if engine.placement.port is not None
        for replica in range(engine.replicas)
    }
    return frozenset(listening | pinned | {survey.desired.gateway.port})


def _port_failures(survey: Survey, ports: frozenset[int]) -> list[Failure]:
    """Replicas that the plan leaves out because somebody else holds the port that the file gives them."""
    found = []
    for blocked in survey.plan.blocked:
        engine = survey.desired.engine(blocked.replica.engine)
        if engine is not None and engine.placement.port is not None and " is held by " in blocked.reason:
            found.append(Failure(engine, "address already in use", blocked.reason, ports=ports))
    return found


def _models(home: Home) -> tuple[str, ...]:
    """The models that lie in SAGE_HOME, by the names that a stack file would use."""
    with contextlib.suppress(OSError):
        return tuple(sorted(f"{path.parent.name}/{path.name}" for path in Path(home.models).glob("*/*")))
    return ()
