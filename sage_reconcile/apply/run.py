"""What one step of a plan has done so far: enough to undo it."""

from dataclasses import dataclass, field

from sage_reconcile.apply.hands import Started
from sage_reconcile.model.actions import Step
from sage_reconcile.model.observed import ObservedLaunch


@dataclass(slots=True)
class Run:
    """`complaints` are what did not work and is no reason to undo the rest."""

    step: Step
    started: Started | None = None
    is_ready: bool = False
    withdrawn: list[ObservedLaunch] = field(default_factory=list)
    stopped: list[ObservedLaunch] = field(default_factory=list)
    asleep: list[ObservedLaunch] = field(default_factory=list)
    is_ending: bool = False
    is_busy: bool = False
    complaints: list[str] = field(default_factory=list)
