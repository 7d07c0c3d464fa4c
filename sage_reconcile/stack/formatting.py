"""Canonical layout of a stack file with its comments kept. The only importer of ruamel.yaml."""

import copy
import io
from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from sage_reconcile.errors import Fault, PermanentError, StackError
from sage_reconcile.stack.yamltree import parse

_MODELINE = "# yaml-language-server: $schema="

Change = Callable[[dict[str, Any]], None]
"""Changes a document in place, by nothing but the methods of dicts and lists."""


def formatted(text: str, path: str, modeline: str = "") -> str:
    """The text in canonical layout: indentation, quoting, line ends; order and comments stay as they are.

    `modeline` is the address of the JSON schema to name on the first line for editors, "" for none. Raises
    StackError where the text is not YAML, PermanentError where the layout would change what it means.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    root, faults = parse(text)
    if faults:
        raise StackError(tuple(Fault(path, f.line, f.column, "", f.message, f.hint) for f in faults))
    if root is None:
        return text
    laid_out = _round_trip(text, path)
    again, faults = parse(laid_out)
    if faults or again is None or again.plain() != root.plain():
        raise PermanentError(f"{path}: formatting would change what the file means, so it was left as it is")
    if modeline and not laid_out.startswith(_MODELINE):
        laid_out = f"{_MODELINE}{modeline}\n{laid_out}"
    return laid_out


def edited(text: str, path: str, change: Change) -> str:
    """The text in canonical layout after `change`; comments, order and quotes of all else stay.

    Raises PermanentError where the text would not mean what was wanted (an anchor that others refer to).
    """
    root, _ = parse(text)
    wanted = copy.deepcopy(root.plain()) if root is not None else {}
    change(wanted)
    laid_out = _round_trip(_round_trip(text, path, change), path)  # quotes of what is new, too
    again, faults = parse(laid_out)
    if faults or again is None or again.plain() != wanted:
        raise PermanentError(f"{path}: cannot be edited without changing something else: edit it by hand")
    return laid_out


def _round_trip(text: str, path: str, change: Change | None = None) -> str:
    yaml = YAML(typ="rt")
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    yaml.preserve_quotes = True
    output = io.StringIO()
    try:
        document = yaml.load(text)
        if change is not None:
            change(document)
            _block_style(document.get("engines"))
        _double_quotes(document)
        yaml.dump(document, output)
    except YAMLError as error:
        reason = " ".join(str(error).split())
        raise PermanentError(f"{path}: cannot be formatted: {reason}") from None
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    return "\n".join(lines).strip("\n") + "\n"


def _block_style(engines: Any) -> None:
    """`engines: []` that got its first entry is a block, like every other list of engines."""
    if isinstance(engines, CommentedSeq) and len(engines) == 1:
        engines.fa.set_block_style()


def _double_quotes(value: Any) -> None:
    """Single quotes become double ones, in place, where that needs no escapes and loses no anchor."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if isinstance(item, SingleQuotedScalarString):
            if not {'"', "\\"} & set(item) and item.anchor.value is None:
                value[key] = DoubleQuotedScalarString(item)
        else:
            _double_quotes(item)
