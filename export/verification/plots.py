"""The plots of a verification, as SVG to stand inside an HTML page."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from starflow.export.verification.agreement import Measurement
from starflow.export.verification.tolerances import Kind
from starflow.export.verification.verify import Verification
from starflow.runtime.reports.plot import COLOURS, GREY, svg_plot

COLUMNS = 4  # panels in a row
WIDTH = 10.4  # inches


def route_colours(result: Verification) -> dict[str, str]:
    """One colour for each route, the same in every plot."""
    return {route: COLOURS[index % len(COLOURS)] for index, route in enumerate(result.routes)}


def growth_plot(result: Verification) -> str:
    """The error of every token of the whole sample, in the order they are decoded, part after part."""

    def draw(figure: Figure) -> None:
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
        measured = [_measured(result, "sample", block) for block in blocks]
        for route, colour in route_colours(result).items():
            errors = [error for each in measured if route in each for error in each[route].per_token]
            if errors:
                axes.plot(_positive(errors), color=colour, linewidth=1.2, label=route)
        axes.set_xlim(0, end)
        unit = result.subject.unit
        _finish(axes, "tokens in the order they are decoded" if unit == "token" else f"{unit}s from noise to data")
        axes.set_ylabel("error")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)

    return svg_plot("growth", (WIDTH, 3.4), draw)


def block_plot(result: Verification, kind: Kind) -> str:
    """The error of every token, one panel for each part, all of them on the reference's noise."""
    blocks = list(result.sensitivity)
    columns = min(COLUMNS, len(blocks))
    rows = -(-len(blocks) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(blocks):
                axes.set_axis_off()
                continue
            for route, measured in _measured(result, kind, blocks[index]).items():
                colour = route_colours(result)[route]
                axes.plot(_positive(measured.per_token), color=colour, linewidth=1.1, label=route)
                if measured.finding:  # from this token on values are not finite
                    axes.axvline(measured.token, color=colour, linestyle=":", linewidth=1.4)
                    style = {"xycoords": axes.get_xaxis_transform(), "fontsize": 8, "color": colour, "va": "top"}
                    axes.annotate(" not finite", (measured.token, 0.96), **style)
            axes.set_title(_title(result, blocks[index]))
            _finish(axes, result.subject.unit if index + columns >= len(blocks) else "")
        for row in grid:
            row[0].set_ylabel("error")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)

    return svg_plot(kind, (WIDTH, 1.1 + 2.1 * rows), draw)


def _title(result: Verification, block: int) -> str:
    parts = result.subject.parts
    return parts[block].name + (", deep" if len(parts) > 1 and block == next(iter(parts)) else "")


def _measured(result: Verification, kind: Kind, block: int) -> dict[str, Measurement]:
    """By route, what was measured of a part."""
    return {m.route: m for m in result.measurements if (m.kind, m.block) == (kind, block)}


def _positive(errors: Sequence[float | None] | np.ndarray) -> np.ndarray:
    """A logarithmic axis shows neither zero nor what is not finite: gaps."""
    values = np.array([np.nan if error is None else error for error in errors], float)
    return np.where(values > 0, values, np.nan)


def _finish(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.tick_params(length=0, which="both")
    axes.margins(x=0.01)
