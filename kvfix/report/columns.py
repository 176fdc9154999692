"""Tables on a terminal of 80 columns: names wrap between words, numbers never."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def lean_table(title: str = "", legend: str = "") -> Table:
    """An empty table without edges; the legend below it explains its short names."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        caption=legend or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )


def add_names(table: Table, head: str, names: Iterable[str], *, most: int) -> None:
    """A column as wide as its longest name, and at most `most`: longer names wrap."""
    width = min(max(map(len, (head, *names))), most)
    table.add_column(head, overflow="fold", min_width=width, max_width=width)


def add_numbers(table: Table, *heads: str) -> None:
    """Columns whose cells stay in one piece: a number over two lines is misread."""
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
