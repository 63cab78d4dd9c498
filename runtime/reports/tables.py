"""The one look of all tables that commands print."""

from collections.abc import Collection

from rich.box import SIMPLE_HEAD
from rich.table import Table


def plain_table(*columns: str, text: Collection[str] = (), title: str | None = None, dense: bool = False) -> Table:
    """An empty table without a frame.

    Args:
        *columns: Their heads. The first and those in `text` stand on the left, all others (numbers) on the right.
        text: Heads of further columns of text, which may wrap.
        title: In bold above the table.
        dense: One space between columns in place of two.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=dense,
    )
    for index, column in enumerate(columns):
        if column in text:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def mebibytes(count: int) -> str:
    """Bytes for people: `12.3 MiB`."""
    unit, size = ("MiB", 2**20) if count >= 2**20 else ("KiB", 2**10)
    return f"{count / size:.{0 if count >= 100 * size else 1}f} {unit}"
