"""Stored plans: what was planned, on which facts, so that exactly that and nothing else is applied."""

import contextlib
import json
from pathlib import Path
from typing import Any

from sage_reconcile.converge import Survey
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.plan.facts import changed, facts
from sage_reconcile.render.plan_data import plan_data
from sage_reconcile.stack.file import StackFile

KIND = "sage-plan"


def write(path: Path, stack: StackFile, survey: Survey, targets: list[str] | tuple[str, ...]) -> None:
    """Stores the plan with its stack (references unresolved) and its facts, mode 0600."""
    if survey.observed.is_described:
        raise PermanentError("a plan against an inventory cannot be stored: there is no host to apply it to")
    content = {
        "kind": KIND,
        "version": 1,
        "name": stack.name,
        "base": str(stack.base),
        "document": stack.document,
        "targets": sorted(targets),
        "facts": facts(survey.observed),
        "plan": plan_data(survey.plan),
    }
    try:
        path.touch(mode=0o600)
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise PermanentError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path) -> dict[str, Any] | None:
    """The stored plan, or None when the file is something else (a stack file, say)."""
    if path.suffix != ".json":
        return None
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.get("kind") == KIND:
            if content.get("version") != 1:
                raise PermanentError(f"{path} was stored by another version of sage; plan again")
            return content
    return None


def check(stored: dict[str, Any], survey: Survey) -> None:
    """Raises BlockedError, naming what changed, when the plan no longer holds."""
    differences = changed(stored["facts"], facts(survey.observed))
    if differences:
        raise BlockedError(
            "the plan is out of date, nothing was done: " + "; ".join(differences) + "; plan again"
        )
    # Causes tell how long something has been so; they may differ while the plan is the same.
    then, now = (_essence(plan) for plan in (stored["plan"], plan_data(survey.plan)))
    if then != now:
        raise BlockedError("the same facts now give another plan, nothing was done; plan again")


def _essence(plan: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(s["id"], s.get("strategy"), s.get("placement"), s["after"]) for s in plan["steps"]]
