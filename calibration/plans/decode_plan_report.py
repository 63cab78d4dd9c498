"""What a calibration found, as a table, as JSON and as a plot."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from starflow.calibration.plans.candidates import BlockCandidates, block_curve
from starflow.calibration.plans.decode_plan import Calibration, planned_milliseconds
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plans.decode_plan import Segment, Steps, Window
from starflow.runtime.reports.tables import plain_table

LEAST = 1e-8  # error drawn for none, which a logarithm does not have
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b4ea3", "#7a5c2e")


def print_report(result: Calibration) -> None:
    """A table of the flow blocks, from the top down, and what came of the whole."""
    table = plain_table()
    table.add_column("block", justify="right")
    table.add_column("plan")
    for column in ("passes", "predicted", "measured", "sequential"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in block_rows(result):
        predicted = row["predicted_milliseconds"]
        table.add_row(
            str(row["block"]),
            "\n".join(row["segments"]),
            f"{row['passes']:.1f}",
            "" if predicted is None else f"{predicted:.2f} ms",
            f"{row['milliseconds']:.2f} ms",
            f"{row['sequential_milliseconds']:.2f} ms",
        )
    console = Console()
    console.print(table)
    passes, tokens = sum(result.measured.passes.values()), sum(found.tokens for found in result.candidates)
    times = result.sequential.milliseconds, result.planned.milliseconds
    for line in (
        f"network passes {passes:.1f} of {tokens}: {tokens / passes:.2f} times fewer",
        f"time of a batch {times[1]:.1f} ms, sequential {times[0]:.1f} ms: {times[0] / times[1]:.2f} times faster",
        f"error against sequential {result.measured.error:.1e}",
        f"no plan stored: {result.reason}" if result.reason else "stored; `--plan auto` takes it",
    ):
        console.print(line, highlight=False)


def block_rows(result: Calibration) -> list[dict[str, Any]]:
    """What came of each flow block, from the top down."""
    return [
        {
            "block": found.block,
            "tokens": found.tokens,
            "segments": [describe(segment) for segment in result.plan.segments(found.block, found.tokens)],
            "guess": found.guess,
            "passes": result.measured.passes[found.block],
            "predicted_milliseconds": planned_milliseconds(result, found.block),
            "milliseconds": result.planned.blocks[found.block],
            "sequential_milliseconds": result.sequential.blocks[found.block],
            "error_by_pass": {str(width): block_curve(found.curves, width) for width in _widths(found)},
            "error_by_guess": found.guesses,
            "windows": [
                {
                    "width": trial.window.width,
                    "tolerance": trial.window.tolerance,
                    "passes": trial.passes,
                    "error": trial.error**0.5,
                }
                for trial in found.windows
            ],
        }
        for found in result.candidates
    ]


def as_json(result: Calibration) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    passes, tokens = sum(result.measured.passes.values()), sum(found.tokens for found in result.candidates)
    return {
        "stored": result.spec is not None,
        "reason": result.reason,
        "error": result.measured.error,
        "passes": passes,
        "sequential_passes": tokens,
        "milliseconds": result.planned.milliseconds,
        "sequential_milliseconds": result.sequential.milliseconds,
        "speedup": result.sequential.milliseconds / result.planned.milliseconds,
        "plan": result.plan.model_dump(mode="json", exclude_none=True),
        "costs": [cost.model_dump(mode="json") for cost in result.costs],
        "blocks": block_rows(result),
        "timing": {name: dataclasses.asdict(getattr(result, name)) for name in ("sequential", "planned")},
    }


def describe(segment: Segment) -> str:
    """A segment in words."""
    if isinstance(segment, Steps):
        return f"{segment.tokens} steps" if segment.tokens > 1 else "1 step"
    guess = "" if segment.guess == "noise" else f", from {segment.guess}"
    if isinstance(segment, Window):
        passes = f" in {len(segment.advances)}" if segment.advances else f", tolerance {segment.tolerance:.0e}"
        return f"window {segment.width} over {segment.tokens}{passes}{guess}"
    passes = f" in {segment.passes}" if segment.tolerance is None else f", tolerance {segment.tolerance:.0e}"
    return f"chunk {segment.tokens}{passes}{guess}"


def write_plot(result: Calibration, path: Path) -> None:
    """Error against passes for each flow block: chunks by width, windows by passes for each token.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(result.candidates), 3.4), layout="constrained")
    panels = figure.subplots(1, len(result.candidates), sharey=True, squeeze=False)[0]
    for panel, found in zip(panels, result.candidates, strict=True):
        for number, width in enumerate(_widths(found)):
            errors = np.maximum(block_curve(found.curves, width), LEAST)
            passes = [(index + 1) / width for index in range(len(errors))]
            panel.plot(passes, errors, color=COLOURS[number % len(COLOURS)], marker=".", label=f"chunk {width}")
        if found.windows:
            rate = [trial.passes / found.tokens for trial in found.windows]
            errors = np.maximum([trial.error**0.5 for trial in found.windows], LEAST)
            panel.plot(rate, errors, "kx", markersize=4, label="windows")
        panel.axvline(1.0, color="#8a8f98", linewidth=1)
        panel.set(title=f"flow block {found.block}, guess: {found.guess}", xlabel="passes for each token", yscale="log")
        panel.set_xscale("log")
        panel.grid(color="#eceef1")
    panels[0].set_ylabel("relative error of the block's tokens")
    fullest = max(panels, key=lambda panel: len(panel.get_lines()))
    figure.legend(*fullest.get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=120)


def _widths(found: BlockCandidates) -> list[int]:
    return sorted({curve.tokens for curve in found.curves if curve.start == 0})
