"""Tables for terminals of any width: columns are omitted, least important first, instead of being cut off."""

from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

Column = tuple[str, Literal["left", "right"]]  # title, side
_ROOM = 10_000


def fitting(
    console: Console, columns: Sequence[Column], rows: Sequence[Sequence[RenderableType]], least: Sequence[int]
) -> Table:
    """Return a table that fits. `least` lists the indices of the columns that may be omitted, in this order."""
    for number in range(len(least) + 1):
        table = _table([i for i in range(len(columns)) if i not in least[:number]], columns, rows)
        wide: Any = console.options.update(width=_ROOM)
        if Measurement.get(console, wide, table).maximum <= console.width:
            break
    return table


def _table(shown: Sequence[int], columns: Sequence[Column], rows: Sequence[Sequence[RenderableType]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title, side in (columns[i] for i in shown):
        table.add_column(title, justify=side, no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in shown if i < len(row)))
    return table
