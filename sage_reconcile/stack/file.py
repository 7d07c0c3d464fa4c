"""What loading a stack file gives."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # commands that read no stack file need not pay for its schema
    from sage_reconcile.stack.schema import Stack


@dataclass(frozen=True, slots=True)
class StackFile:
    """A stack without faults.

    `document` is the merged plain document: references as written, paths absolute, defaults not yet applied
    to the engines; it is what history and plan files keep. `base` is the folder of the first file, `sources`
    every file that was read with its SHA-256, and `model` the validated stack with defaults applied and
    `${env:NAME}` substituted (but in secrets).
    """

    name: str
    document: dict[str, Any]
    base: Path
    sources: tuple[tuple[str, str], ...]
    model: "Stack"
