"""The rounds of `sage apply`: apply, and with --accept-fixes write the known fix and apply again."""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from sage_reconcile import journal, planfile
from sage_reconcile.apply.execute import Options
from sage_reconcile.applying import Applied, remember
from sage_reconcile.cli.apply import answer, applied_data, confirm, perform, report, require_terminal
from sage_reconcile.cli.files import write_text
from sage_reconcile.cli.stackfile import known_targets, load_stack
from sage_reconcile.converge import Survey, local_host, survey, with_host_notes
from sage_reconcile.errors import PermanentError
from sage_reconcile.fixing import NO_REMEDIES, Remedies, Source, with_known_fixes
from sage_reconcile.home import Home
from sage_reconcile.lock import applying
from sage_reconcile.plan.policy import Policy
from sage_reconcile.render.fixes import fix_data, fix_lines, patch_data
from sage_reconcile.render.print import console, print_json, print_plan
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.patch import Patch
from sage_reconcile.stack.resolve import resolve

ROUNDS = 5
"""How many edits are tried one after another: an engine that they do not bring up needs a person."""


@dataclass(frozen=True, slots=True)
class Files:
    """What the stack is read from: files with `--set`, or a stored plan."""

    file: Path | None
    overlays: tuple[Path, ...]
    sets: tuple[str, ...]
    stored: dict[str, Any] | None

    def load(self) -> StackFile:
        from sage_reconcile.stack.load import from_document

        if self.stored is None:
            return load_stack(self.file, self.overlays, self.sets)
        return from_document(
            self.stored["document"], Path(self.stored["base"]), self.stored["name"], os.environ
        )


@dataclass(frozen=True, slots=True)
class Round:
    """One apply. `applied` is None where nothing was executed; `remedies` of what failed, or would again."""

    applied: Applied | None
    remedies: Remedies = NO_REMEDIES


class Rounds:
    """Applies a stack as often as it needs fixes, ROUNDS times at most."""

    def __init__(
        self, files: Files, targets: Sequence[str], options: Options, yes: bool, as_json: bool
    ) -> None:
        self._files = files
        self._targets = list(targets or (files.stored or {}).get("targets") or ())
        self._options = options
        self._yes = yes
        self._as_json = as_json
        self._home = Home.from_environ()
        self._host = local_host(self._home)
        self._written: list[Patch] = []
        self._note = ""

    def show(self) -> int:
        """Only the plan; the exit status is 1 where something is blocked."""
        _, look = self._load()
        with applying(self._home, _tell):
            found = look()
        print_plan(found.plan, "json" if self._as_json else "text")
        return 1 if found.plan.blocked else 0

    def apply(self, accepts_fixes: bool) -> int:
        """The exit status: 0 when everything is now as the stack asks."""
        if accepts_fixes and self._files.stored is not None:
            raise PermanentError(
                "--accept-fixes edits a stack file, and this is a stored plan: apply the file"
            )
        seen: set[str] = set()
        for number in range(1, ROUNDS + 1):
            ended = self._round(accepts_fixes)
            patches = ended.remedies.patches
            circle = any(patch.after in seen for patch in patches)
            if not accepts_fixes or not patches or circle or number == ROUNDS:
                break
            seen |= {patch.before for patch in patches}
            if not self._write(ended.remedies):
                break
        if accepts_fixes and patches and (circle or number == ROUNDS):
            _tell("the fixes do not lead to an engine that starts: this needs a person")
        return self._end(ended)

    def _load(self) -> tuple[Source, Callable[[], Survey]]:
        """The stack, and a look at this host with the plan for it."""
        stack = self._files.load()
        desired = resolve(stack)
        source = Source(stack, self._files.sets, self._home)
        policy = Policy(targets=known_targets(self._targets, [engine.name for engine in desired.engines]))

        def look() -> Survey:
            found = with_host_notes(asyncio.run(survey(desired, self._host.eyes, policy)), self._home)
            if self._files.stored is None:
                return with_known_fixes(found, source)
            planfile.check(self._files.stored, found)
            return found

        return source, look

    def _round(self, accepts_fixes: bool) -> Round:
        source, look = self._load()
        with applying(self._home, _tell) as turn:
            found = look()
            # What failed with this very launch fails again: no need to see it for minutes.
            past = source.of_the_past(found) if accepts_fixes else NO_REMEDIES
            if past.patches:
                return Round(None, past)
            yes = self._yes or self._files.stored is not None
            agreed = confirm(found, look, turn, yes, self._as_json)
            if agreed is None:
                return Round(None)
            applied = perform(agreed, self._host, self._options, self._as_json)
            remember(self._home, source.stack, applied, self._note)
        remedies = source.of_outcomes(agreed, applied.outcomes)
        for remedy in remedies.remedies:
            journal.append(self._home, "fix", f"{found.plan.stack}/{remedy.engine}", remedy.short)
        return Round(applied, remedies)

    def _write(self, found: Remedies) -> bool:
        """Shows the edits and writes them, once agreed to."""
        self._show(found, shows_command=False)
        if not self._yes:
            require_terminal("write and apply")
            if answer("Write this and apply again? [y/N] ") not in ("y", "yes"):
                _tell("nothing was written")
                return False
        for patch in found.patches:
            # Somebody may have saved the file while the question was open.
            if Path(patch.path).read_bytes().decode("utf-8") != patch.before:
                raise PermanentError(f"{patch.path} was changed meanwhile: nothing was written; apply again")
            write_text(Path(patch.path), patch.after)
            self._written.append(patch)
        changes = "; ".join(f"{c.engine}: {c}" for patch in found.patches for c in patch.changes)
        self._note = f"fixed {changes}"
        journal.append(self._home, "fix written", ",".join(p.path for p in found.patches), changes)
        return True

    def _end(self, ended: Round) -> int:
        if self._as_json:
            data = self._data(ended)
            print_json(data)
            return 0 if data["ok"] else 1
        status = report(ended.applied) if ended.applied is not None else 1
        self._show(ended.remedies, shows_command=self._files.stored is None and not self._written)
        return status

    def _data(self, ended: Round) -> dict[str, Any]:
        fixes = {remedy.engine: fix_data(remedy) for remedy in ended.remedies.remedies}
        if ended.applied is not None:
            data = applied_data(ended.applied, fixes)
        else:
            data = {"version": 1, "plan": None, "outcomes": [], "ok": False}
        return data | {
            "fixes": list(fixes.values()),
            "patches": [patch_data(patch) for patch in ended.remedies.patches],
            "written": [patch_data(patch) for patch in self._written],
        }

    def _show(self, found: Remedies, shows_command: bool) -> None:
        out = console()
        if self._as_json:
            out = type(out)(stderr=True, soft_wrap=True, highlight=False)
        for style, text in fix_lines(found, shows_command):
            out.print(Text(text, style=style))


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
