"""Fixes of engines that did not start, for people and for machines."""

from typing import Any

from sage_reconcile.fixing import COMMAND, Remedies, Remedy
from sage_reconcile.render.clean import one_line
from sage_reconcile.stack.patch import Change, Patch


def fix_lines(found: Remedies, shows_command: bool) -> list[tuple[str, str]]:
    """Style and text of each line: why, the difference of each file, and what to do next."""
    lines: list[tuple[str, str]] = []
    for remedy in found.remedies:
        why = f" ({remedy.why})" if remedy.why else ""
        lines.append(("", ""))
        lines.append(("bold", f"{remedy.engine}: {remedy.cause}{why}"))
        lines += [("", f"  {change.file}:{change.line}: {change}") for change in remedy.changes]
        lines += [("", f"  {remedy.instead}")] if remedy.instead else []
    for patch in found.patches:
        lines.append(("", ""))
        lines += [(_style(line), line) for line in patch.diff.splitlines()]
    if found.patches and shows_command:
        lines += [("", ""), ("", f"`{COMMAND}` writes this into the file and applies again.")]
    return [(style, one_line(text)) for style, text in lines]


def _style(line: str) -> str:
    if line.startswith(("---", "+++", "@@")):
        return "dim"
    return {"+": "green", "-": "red"}.get(line[:1], "")


def fix_data(remedy: Remedy) -> dict[str, Any]:
    return {
        "engine": remedy.engine,
        "cause": remedy.cause,
        "why": remedy.why,
        "changes": [_change(change) for change in remedy.changes],
        "instead": remedy.instead,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "file": change.file,
        "line": change.line,
        "path": change.path,
        "before": change.before,
        "after": change.after,
    }


def patch_data(patch: Patch) -> dict[str, Any]:
    return {"file": patch.path, "diff": patch.diff, "changes": [_change(change) for change in patch.changes]}
