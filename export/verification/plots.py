"""The plots of a verification, as SVG to stand inside an HTML page."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from starflow.export.verification.agreement import Measurement
from starflow.export.verification.tolerances import Kind
from starflow.export.verification.verify import Verification

# Okabe and Ito's colours, told apart by nearly everybody; grey is left for the reference.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4ea3", "#7a5c2e")
GREY = "#8a8f98"
COLUMNS = 4  # panels in a row
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
    "axes.grid": True,
    "grid.color": "#eceef1",
    "legend.frameon": False,
}


def route_colours(result: Verification) -> dict[str, str]:
    """One colour for each route, the same in every plot."""
    return {route: COLOURS[index % len(COLOURS)] for index, route in enumerate(result.routes)}


def growth_plot(result: Verification) -> str:
    """The error of every token of the whole sample, in the order they are decoded, block after block."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.4))
        axes = figure.subplots()
        blocks, end = list(result.sensitivity), 0
        for number, block in enumerate(blocks):
            start, end = end, end + len(result.sensitivity[block])
            if number:
                axes.axvline(start, color="#c3c7ce", linewidth=0.8)
            axes.text((start + end) / 2, 1.02, _title(result, block), transform=axes.get_xaxis_transform(), ha="center")
        undisturbed = np.concatenate([result.sensitivity[block] for block in blocks])
        label = f"{result.reference}, noise moved by one ulp"
        axes.plot(_positive(undisturbed), color=GREY, linewidth=1.2, linestyle=(0, (4, 2)), label=label)
        for route, colour in route_colours(result).items():
            errors = [error for block in blocks for error in _errors(result, route, "sample", block)]
            if errors:
                axes.plot(_positive(errors), color=colour, linewidth=1.2, label=route)
        axes.set_xlim(0, end)
        unit = result.subject.unit
        _finish(axes, "tokens in the order they are decoded" if unit == "token" else f"{unit}s from noise to data")
        axes.set_ylabel("error")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
        return _svg(figure, "growth")


def block_plot(result: Verification, kind: Kind) -> str:
    """The error of every token, one panel for each block, all of them on the reference's noise."""
    blocks = list(result.sensitivity)
    columns = min(COLUMNS, len(blocks))
    rows = -(-len(blocks) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 1.1 + 2.1 * rows))
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(blocks):
                axes.set_axis_off()
                continue
            for route, colour in route_colours(result).items():
                errors = _errors(result, route, kind, blocks[index])
                if errors:
                    axes.plot(_positive(errors), color=colour, linewidth=1.1, label=route)
                    _mark(axes, result, route, kind, blocks[index], colour)
            axes.set_title(_title(result, blocks[index]))
            _finish(axes, result.subject.unit if index + columns >= len(blocks) else "")
        for row in grid:
            row[0].set_ylabel("error")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
        return _svg(figure, kind)


def _title(result: Verification, block: int) -> str:
    return f"flow block {block}" + (", deep" if block == next(iter(result.sensitivity)) else "")


def _measurement(result: Verification, route: str, kind: Kind, block: int) -> Measurement | None:
    return next((m for m in result.measurements if (m.route, m.kind, m.block) == (route, kind, block)), None)


def _errors(result: Verification, route: str, kind: Kind, block: int) -> Sequence[float | None]:
    measurement = _measurement(result, route, kind, block)
    return measurement.per_token if measurement else ()


def _positive(errors: Sequence[float | None] | np.ndarray) -> np.ndarray:
    """A logarithmic axis shows neither zero nor what is not finite: gaps."""
    values = np.array([np.nan if error is None else error for error in errors], float)
    return np.where(values > 0, values, np.nan)


def _mark(axes: Axes, result: Verification, route: str, kind: Kind, block: int, colour: str) -> None:
    """A line at the token from which on values are not finite."""
    measurement = _measurement(result, route, kind, block)
    if measurement and measurement.finding:
        axes.axvline(measurement.token, color=colour, linestyle=":", linewidth=1.4)
        place = (measurement.token, 0.96)
        axes.annotate(" not finite", place, xycoords=axes.get_xaxis_transform(), fontsize=8, color=colour, va="top")


def _finish(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.tick_params(length=0, which="both")
    axes.margins(x=0.01)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element whose ids no other figure of the page uses."""
    figure.set_layout_engine("constrained")
    FigureCanvasSVG(figure)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
