"""A benchmark as one picture: time, error, and where a token's time goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from starflow.runtime.diagnostics.benchmark import Benchmark
from starflow.runtime.diagnostics.operator_profile import StepProfile
from starflow.runtime.reports.plot import COLOURS, write_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR = "#1b1e23"


def write_benchmark_plot(benchmark: Benchmark, profiles: Sequence[StepProfile], path: Path) -> None:
    """Time per image split into flow blocks beside the error; below, in `profiles`, a token's time by kinds of operators.

    Without profiles there is no lower part. UsageError if the file cannot be written.
    """
    heights = [len(benchmark.variants), *([len(profiles)] if profiles else [])]

    def draw(figure: "Figure") -> None:
        ratios = {"height_ratios": heights, "width_ratios": [3, 1]}
        panels = figure.subplots(len(heights), 2, squeeze=False, gridspec_kw=ratios)
        _draw_times(panels[0, 0], benchmark)
        _draw_errors(panels[0, 1], benchmark)
        if profiles:
            _draw_kinds(panels[1, 0], profiles)
            panels[1, 1].set_axis_off()

    write_plot(path, (9.6, 1.6 * len(heights) + 0.5 * sum(heights)), draw)


def _draw_times(panel: "Axes", benchmark: Benchmark) -> None:
    timings = benchmark.variants
    names = [f"{t.variant}{', plan' if t.decoding == 'plan' else ''}" for t in timings]
    parts = [timing.rows[:-1] or timing.rows for timing in timings]  # a continuous flow has no blocks
    # A row's times are medians of their own: blocks are scaled to add up to the whole.
    times = np.array([[row.milliseconds for row in rows] for rows in parts])
    times *= np.array([t.image_milliseconds for t in timings])[:, None] / times.sum(axis=1, keepdims=True)
    labels = ["network" if row.block is None else f"flow block {row.block}" for row in parts[0]]
    floors = [t.image_milliseconds * t.total.memory_bandwidth_percent / 100 for t in timings]
    _stack(panel, names, times, labels, floors)
    for index, (timing, floor) in enumerate(zip(timings, floors, strict=True)):
        milliseconds = timing.image_milliseconds
        digits, percent = 0 if milliseconds >= 100 else 1, timing.total.memory_bandwidth_percent
        note = f"  {milliseconds:,.{digits}f} ms, {percent:.0f} % of memory bandwidth"
        panel.text(max(milliseconds, floor), index, note, va="center", fontsize=8)
    panel.margins(x=0.65)
    title = f"Time of {benchmark.repetitions} batches of {timings[0].batch}, at {benchmark.bandwidth / 1e9:.1f} GB/s"
    panel.set(xlabel="ms per image", title=title)


def _draw_errors(panel: "Axes", benchmark: Benchmark) -> None:
    errors = [(index, t.error) for index, t in enumerate(benchmark.variants) if t.error]
    for index, error in errors:
        panel.plot(error, index, "o", color=COLOURS[1])
        panel.annotate(f"{error:.1e}", (error, index), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    if errors:
        panel.set(xscale="log", xlim=(min(e for _, e in errors) / 10, max(e for _, e in errors) * 10))
    panel.set(ylim=(len(benchmark.variants) - 0.5, -0.5), yticks=[], title="Error of the samples")
    how = ", token by token" if benchmark.unit == "token" else ""
    panel.set_xlabel(f"relative to {benchmark.exact}{how}", fontsize=8)


def _draw_kinds(panel: "Axes", profiles: Sequence[StepProfile]) -> None:
    times = np.array([[max(kind.milliseconds, 0.0) for kind in profile.kinds] for profile in profiles])
    labels = [kind.kind for kind in profiles[0].kinds]
    _stack(panel, [p.variant for p in profiles], times, labels, [p.floor_milliseconds for p in profiles])
    panel.set(xlabel="ms per token", title="Where a token's time goes, token by token")


def _stack(
    panel: "Axes", names: Sequence[str], times: np.ndarray, labels: Sequence[str], floors: Sequence[float]
) -> None:
    """Horizontal bars, the first on top; `times` are [bars, parts]."""
    starts = np.cumsum(times, axis=1) - times
    for part, label in enumerate(labels):
        colour = COLOURS[part % len(COLOURS)]
        panel.barh(range(len(names)), times[:, part], left=starts[:, part], color=colour, label=label, height=0.6)
    for index, floor in enumerate(floors):
        panel.vlines(floor, index - 0.42, index + 0.42, color=FLOOR, label="_" if index else "floor")
    panel.grid(visible=False, axis="y")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
