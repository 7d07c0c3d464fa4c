"""What validation found, in the notations of people, programs and CI systems. Pure: values to text."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from sage_reconcile.errors import Fault
from sage_reconcile.version import __version__

FORMATS = ("text", "json", "github", "sarif", "junit")


@dataclass(frozen=True, slots=True)
class Checked:
    """One stack that was checked: its name and number of engines, or its faults."""

    file: str
    stack: str = ""
    engines: int = 0
    faults: tuple[Fault, ...] = ()


def render(checked: Sequence[Checked], notation: str) -> str:
    """The report in one of FORMATS, without a line feed at its end."""
    return {"text": _text, "json": _json, "github": _github, "sarif": _sarif, "junit": _junit}[notation](
        checked
    )


def _text(checked: Sequence[Checked]) -> str:
    lines: list[str] = []
    for one in checked:
        lines += [str(fault) for fault in one.faults]
        if not one.faults:
            engines = "1 engine" if one.engines == 1 else f"{one.engines} engines"
            lines.append(f"{one.file}: ok: stack {one.stack}, {engines}")
    return "\n".join(lines)


def _json(checked: Sequence[Checked]) -> str:
    files = [
        {"file": one.file, "ok": not one.faults, "stack": one.stack, "engines": one.engines}
        for one in checked
    ]
    faults = [asdict(fault) for one in checked for fault in one.faults]
    return json.dumps({"version": 1, "files": files, "faults": faults}, indent=2, ensure_ascii=False)


def _github(checked: Sequence[Checked]) -> str:
    lines = []
    for fault in (fault for one in checked for fault in one.faults):
        place = f"file={_property(fault.path)}"
        if fault.line:
            place += f",line={fault.line},col={fault.column}"
        message = _data(_sentence(fault))
        lines.append(f"::error {place},title={_property('sage validate')}::{message}")
    return "\n".join(lines)


def _sentence(fault: Fault) -> str:
    field = f"{fault.field}: " if fault.field else ""
    hint = f" ({fault.hint})" if fault.hint else ""
    return f"{field}{fault.message}{hint}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _sarif(checked: Sequence[Checked]) -> str:
    results = []
    for fault in (fault for one in checked for fault in one.faults):
        region = {"region": {"startLine": fault.line, "startColumn": fault.column}} if fault.line else {}
        location = {"physicalLocation": {"artifactLocation": {"uri": quote(fault.path)}, **region}}
        results.append(
            {
                "ruleId": "stack-file",
                "level": "error",
                "message": {"text": _sentence(fault)},
                "locations": [location],
            }
        )
    rule = {"id": "stack-file", "shortDescription": {"text": "A stack file must be valid"}}
    driver = {"name": "sage", "version": __version__, "rules": [rule]}
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def _junit(checked: Sequence[Checked]) -> str:
    failed = sum(bool(one.faults) for one in checked)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites><testsuite name="sage validate" tests="{len(checked)}" failures="{failed}">',
    ]
    for one in checked:
        case = f"<testcase classname={quoteattr('stack')} name={quoteattr(one.file)}"
        if not one.faults:
            lines.append(f"{case}/>")
            continue
        told = "\n".join(str(fault) for fault in one.faults)
        count = f"{len(one.faults)} fault{'s' if len(one.faults) > 1 else ''}"
        lines.append(f"{case}><failure message={quoteattr(count)}>{escape(told)}</failure></testcase>")
    lines.append("</testsuite></testsuites>")
    return "\n".join(lines)
