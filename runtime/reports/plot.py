"""The one way to a plot: drawn in one style, then written to a file whole or not at all, or put inside an HTML page.

Needs matplotlib, which the extra `export` brings; it is imported when a plot is checked or drawn.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow.runtime.plain.atomic_write import atomic_file, check_output
from starflow.runtime.plain.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by nearly everybody; grey is for what others are compared with.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4ea3", "#7a5c2e")
GREY = "#8a8f98"
LIMIT = "#c2272d"  # a budget, a tolerance
FORMATS = (".png", ".svg", ".pdf")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "svg.hashsalt": "starflow",  # the same results give the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c3c7ce",
    "axes.labelcolor": "#4a505a",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.color": "#4a505a",
    "ytick.color": "#4a505a",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#eceef1",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.dpi": 130,
}

Draw = Callable[["Figure"], None]


def check_plot(path: Path, option: str = "--plot") -> None:
    """Raise before long work if a plot could not be drawn or written to `path`.

    Raises:
        UsageError: the format is not known, or the folder cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{option} {path}: name a file that ends in {', '.join(FORMATS)}")
    check_output(path)
    import matplotlib.figure  # noqa: F401


def write_plot(path: Path, size: tuple[float, float], draw: Draw) -> None:
    """Draw a plot into a file.

    Args:
        path: The file; its ending is its format, see `FORMATS`.
        size: Width and height in inches.

    Raises:
        UsageError: the file cannot be written.
    """
    image = _drawn(path.suffix.lower().lstrip("."), size, draw)
    with atomic_file(path) as temporary:
        temporary.write_bytes(image)


def svg_plot(name: str, size: tuple[float, float], draw: Draw) -> str:
    """Draw a plot as an SVG element for an HTML page; `name` keeps its ids apart from those of other plots there."""
    text = _drawn("svg", size, draw, transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)


def _drawn(kind: str, size: tuple[float, float], draw: Draw, *, transparent: bool = False) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    dateless = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}.get(kind)
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(file, format=kind, transparent=transparent, metadata=dateless)
    return file.getvalue()
