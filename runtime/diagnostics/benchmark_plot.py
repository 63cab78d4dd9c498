"""A benchmark as one picture: time, error, and where a token's time goes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from starflow.runtime.diagnostics.benchmark import Benchmark
from starflow.runtime.diagnostics.operator_profile import StepProfile
from starflow.runtime.plain.atomic_write import atomic_file, check_file
from starflow.runtime.plain.errors import UsageError

# Okabe and Ito's colours, told apart by nearly everybody.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#5b4ea3", "#7a5c2e")
FLOOR = "#1b1e23"
FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Raise before anything is measured if the plot cannot be written.

    Raises:
        UsageError: its ending is not known, or its folder is not there.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: give a file that ends in {', '.join(FORMATS)}")
    check_file(path)


def write_plot(benchmark: Benchmark, profiles: Sequence[StepProfile], path: Path) -> None:
    """Time per image split into flow blocks beside the error; below, a token's time split into kinds of operators.

    Args:
        benchmark: What was measured.
        profiles: Of its variants; none leaves the lower part out.
        path: The picture; its ending is its format.

    Raises:
        UsageError: the file cannot be written.
    """
    heights = [len(benchmark.variants), *([len(profiles)] if profiles else [])]
    figure = Figure(figsize=(9.6, 1.6 * len(heights) + 0.5 * sum(heights)), layout="constrained")
    panels = figure.subplots(
        len(heights), 2, squeeze=False, gridspec_kw={"height_ratios": heights, "width_ratios": [3, 1]}
    )
    _draw_times(panels[0, 0], benchmark)
    _draw_errors(panels[0, 1], benchmark)
    if profiles:
        _draw_kinds(panels[1, 0], profiles)
        panels[1, 1].set_axis_off()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().lstrip("."), dpi=130)


def _draw_times(panel: Axes, benchmark: Benchmark) -> None:
    timings = benchmark.variants
    names = [f"{t.variant}{', plan' if t.decoding == 'plan' else ''}" for t in timings]
    # A row's times are medians of their own: blocks are scaled to add up to the whole.
    times = np.array([[row.milliseconds for row in timing.rows[:-1]] for timing in timings])
    times *= np.array([t.image_milliseconds for t in timings])[:, None] / times.sum(axis=1, keepdims=True)
    labels = [f"flow block {row.block}" for row in timings[0].rows[:-1]]
    floors = [t.image_milliseconds * t.total.percent_of_floor / 100 for t in timings]
    _stack(panel, names, times, labels, floors)
    for index, (timing, floor) in enumerate(zip(timings, floors, strict=True)):
        digits = 0 if timing.image_milliseconds >= 100 else 1
        note = f"  {timing.image_milliseconds:,.{digits}f} ms, {timing.total.percent_of_floor:.0f} % of floor"
        panel.text(max(timing.image_milliseconds, floor), index, note, va="center", fontsize=8)
    panel.margins(x=0.4)
    title = f"Time of {benchmark.repetitions} batches of {timings[0].batch}, at {benchmark.bandwidth / 1e9:.1f} GB/s"
    panel.set(xlabel="ms per image", title=title)


def _draw_errors(panel: Axes, benchmark: Benchmark) -> None:
    errors = [(index, t.error) for index, t in enumerate(benchmark.variants) if t.error]
    for index, error in errors:
        panel.plot(error, index, "o", color=COLOURS[5])
        panel.annotate(f"{error:.1e}", (error, index), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    if errors:
        panel.set(xscale="log", xlim=(min(e for _, e in errors) / 10, max(e for _, e in errors) * 10))
    panel.set(ylim=(len(benchmark.variants) - 0.5, -0.5), yticks=[], title="Error of the samples")
    panel.set_xlabel(f"against {benchmark.exact}, sequential", fontsize=8)
    panel.grid(axis="x", color="#eceef1")
    panel.set_axisbelow(True)


def _draw_kinds(panel: Axes, profiles: Sequence[StepProfile]) -> None:
    times = np.array([[max(kind.milliseconds, 0.0) for kind in profile.kinds] for profile in profiles])
    labels = [kind.kind for kind in profiles[0].kinds]
    _stack(panel, [p.variant for p in profiles], times, labels, [p.floor_milliseconds for p in profiles])
    panel.set(xlabel="ms per token", title="Where a token's time goes, token by token")


def _stack(
    panel: Axes, names: Sequence[str], times: np.ndarray, labels: Sequence[str], floors: Sequence[float]
) -> None:
    """Horizontal bars, the first on top; `times` are [bars, parts]."""
    starts = np.cumsum(times, axis=1) - times
    for part, label in enumerate(labels):
        colour = COLOURS[part % len(COLOURS)]
        panel.barh(range(len(names)), times[:, part], left=starts[:, part], color=colour, label=label, height=0.6)
    for index, floor in enumerate(floors):
        panel.vlines(floor, index - 0.42, index + 0.42, color=FLOOR, label="_" if index else "floor")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
