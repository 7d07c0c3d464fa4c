"""An edit of adhoc.yaml that is carried out: planned, written, applied, and taken back if a start fails."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sage_reconcile import adhoc
from sage_reconcile.apply.execute import Options
from sage_reconcile.applying import Applied, remember
from sage_reconcile.cli.apply import confirm, perform, report
from sage_reconcile.cli.llm.whole import as_it_runs, is_failed, say, take_back
from sage_reconcile.converge import Host, Survey, local_host, plan_for, with_host_notes
from sage_reconcile.errors import BlockedError
from sage_reconcile.home import Home
from sage_reconcile.lock import Turn, applying
from sage_reconcile.model.actions import Verdict
from sage_reconcile.model.desired import DesiredState
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.plan.policy import Policy
from sage_reconcile.render.plan_text import headline
from sage_reconcile.render.print import print_plan
from sage_reconcile.stack.editing import with_engine
from sage_reconcile.stack.resolve import resolve

Fields = Mapping[str, Mapping[str, Any]]
"""What is laid over the entries of engines, by name."""

Decide = Callable[[ObservedState], Fields]
"""The edit, by what the host is like: without a GPU an engine is written down as one of the CPU."""

DEFAULT = Options()

QUESTIONS = frozenset({Verdict.REPLACE, Verdict.STOP})
"""What is asked about: whoever starts something may not know that something else ends by it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a command wants. `restart`: engines that get new processes although nothing changed."""

    decide: Decide
    yes: bool = False
    dry_run: bool = False
    restart: bool = False
    options: Options = DEFAULT


@dataclass(frozen=True, slots=True)
class Carried:
    """How it ended: the exit status, and the engines that it was about."""

    status: int
    engines: tuple[str, ...] = ()
    is_done: bool = False


class Carrier:
    """One command's edit, from the look at the host to the routes that are published."""

    def __init__(self, home: Home, wish: Wish) -> None:
        self._home = home
        self._wish = wish
        self._host: Host = local_host(home)
        self._draft: adhoc.Draft | None = None
        self._names: frozenset[str] = frozenset()

    def run(self) -> Carried:
        """Raises ReconcileError where nothing was done; then the file is as it was."""
        with applying(self._home, say) as turn:
            return self._under_lock(turn)

    def _under_lock(self, turn: Turn) -> Carried:
        found = self._look()
        names = tuple(sorted(self._names))
        if self._wish.dry_run:
            print_plan(found.plan, "text")
            return Carried(1 if found.plan.blocked else 0, names)
        if found.plan.blocked:
            print_plan(found.plan, "text")
            raise BlockedError(f"{headline(found.plan)[:-1]}; nothing was done: see above what is in the way")
        is_free = self._wish.yes or not any(step.verdict in QUESTIONS for step in found.plan.steps)
        agreed = confirm(found, self._look, turn, is_free or self._wish.restart)
        if agreed is None:
            return Carried(1, names)
        assert self._draft is not None
        adhoc.write(self._draft)
        before = as_it_runs(adhoc.STACK, agreed.observed)
        applied = perform(agreed, self._host, self._wish.options)
        return self._end(self._draft, before, applied, names)

    def _look(self) -> Survey:
        """Looks, makes the edit anew and plans it: the file may have changed while a question was open."""
        observed = asyncio.run(self._host.eyes.look())
        fields = self._wish.decide(observed)
        self._names = frozenset(fields)
        self._draft = adhoc.draft(self._home, partial(_edit, fields))
        desired = resolve(self._draft.stack)
        restart = self._names if self._wish.restart else frozenset()
        policy = Policy(targets=self._names, restart=restart)
        observed = asyncio.run(self._host.eyes.look(desired))
        return with_host_notes(plan_for(desired, observed, policy), self._home)

    def _end(
        self, draft: adhoc.Draft, before: DesiredState, applied: Applied, names: tuple[str, ...]
    ) -> Carried:
        if not is_failed(applied):
            remember(self._home, draft.stack, applied)
            return Carried(report(applied), names, applied.is_whole)
        report(applied)
        self._take_back(draft, before, applied)
        return Carried(1, names)

    def _take_back(self, draft: adhoc.Draft, before: DesiredState, applied: Applied) -> None:
        """What was started along with the one that failed is ended, and the file is as it was."""
        take_back(before, applied, self._host, self._wish.options)
        if adhoc.restore(draft):
            say(f"{draft.path} is as it was before.")
        else:
            say(f"note: {draft.path} was edited meanwhile and stays as it is now")


def _edit(fields: Fields, text: str, path: str) -> str:
    for name, own in fields.items():
        text = with_engine(text, path, {"name": name, **own})
    return text


def as_cpu(fields: Mapping[str, Any], observed: ObservedState) -> dict[str, Any]:
    """The fields of an LLM where there is no GPU: of the CPU, by transformers if nothing else is said."""
    is_blind = any(gap.what in ("gpus", "node") for gap in observed.gaps)
    if observed.gpus or is_blind or fields.get("use_gpu") is True or fields.get("gpus"):
        return dict(fields)
    own = {**fields, "use_gpu": False}
    if "runtime" not in own:
        # In bfloat16 some CPUs answer with nonsense; in float32 none does.
        own |= {"runtime": "transformers", "args": {"dtype": "float32", **own.get("args", {})}}
    return own
