"""Tables that stay readable in a narrow terminal: where the columns have no room, each row is a paragraph."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

NARROW = 16
"""Columns that may wrap are given so many cells at least."""
GAP = 2


class Folding:
    """The table where it fits; else of each row its first two cells on a line, and below them the others by
    name."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = self._table.columns
        needed = sum(_needed(column, console) for column in columns) + GAP * (len(columns) - 1)
        if needed <= options.max_width:
            yield self._table
            return
        names = [_text(column.header).plain.lower() for column in columns]
        for cells in zip(*(map(_text, column.cells) for column in columns), strict=True):
            yield Text("  ").join(cells[:2])
            rest = [
                Text.assemble((f"{name} ", "dim"), cell)
                for name, cell in zip(names[2:], cells[2:], strict=True)
                if cell.plain not in ("", "-")
            ]
            yield Padding(Text(", ").join(rest), (0, 0, 0, 2))


def _needed(column: Column, console: Console) -> int:
    widths = [console.measure(_text(cell)).maximum for cell in (column.header, *column.cells)]
    return max(widths) if column.no_wrap else min(max(widths), NARROW)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))
