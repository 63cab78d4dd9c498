"""The one look of all tables that commands print."""

from rich.box import SIMPLE_HEAD
from rich.table import Table


def plain_table(title: str | None = None, *, dense: bool = False) -> Table:
    """An empty table without a frame, its title in bold on the left; a dense one has one space between columns."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=dense,
    )


def mebibytes(count: int) -> str:
    """Bytes for people: `12.3 MiB`."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
