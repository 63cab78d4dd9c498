"""The report of a decode plan's calibration."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from starflow.calibration.plans.candidates import BlockCandidates, block_curve
from starflow.calibration.plans.decode_plan import DecodeCalibration
from starflow.calibration.plans.next_gain import LEAST
from starflow.calibration.plans.plan_report import PlanReport, ReportTable, milliseconds
from starflow.calibration.plans.sample_distribution import LEAST as LEAST_SAMPLES
from starflow.calibration.plans.sample_distribution import SECONDS
from starflow.runtime.plans.decode_plan import Segment, Steps, Student, Window
from starflow.runtime.reports.plot import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST = 1e-8  # drawn for an error of 0, which a logarithmic axis does not have


def decode_report(result: DecodeCalibration) -> PlanReport:
    """Report a calibration, flow blocks in sampling order."""
    rows, budget = block_rows(result), result.options.budget
    passes, tokens = sum(result.measured.passes.values()), sum(found.tokens for found in result.candidates)
    planned, sequential = result.planned.milliseconds, result.sequential.milliseconds
    values = {
        "stored": result.spec is not None,
        "reason": result.reason,
        "budget": budget,
        "error": result.measured.error,
        "distribution": None if result.distribution is None else asdict(result.distribution),
        "passes": passes,
        "sequential_passes": tokens,
        "milliseconds": planned,
        "sequential_milliseconds": sequential,
        "speedup": sequential / planned,
        "plan": result.plan.model_dump(mode="json", exclude_none=True),
        "costs": [cost.model_dump(mode="json") for cost in result.costs],
        "blocks": rows,
        "next_gain": None if result.next_gain is None else asdict(result.next_gain),
        "students": None if result.students is None else asdict(result.students),
        "timing": {
            name: {"milliseconds": times.milliseconds, "blocks": times.part_milliseconds}
            for name, times in (("sequential", result.sequential), ("planned", result.planned))
        },
    }
    facts = (
        f"network passes {passes:.1f} of {tokens}: {tokens / passes:.2f} times fewer",
        f"time of a batch {planned:.1f} ms, sequential {sequential:.1f} ms: {sequential / planned:.2f} times faster",
        f"error against sequential decoding {result.measured.error:.1e}, budget {budget:g}",
        *as_a_distribution(result),
        limit(result),
        *by_students(result),
    )
    return PlanReport(
        stored=result.spec is not None,
        outcome=f"no plan stored: {result.reason}" if result.reason else "stored; `--plan auto` takes it",
        facts=facts,
        tables=(_plan_table(rows), _cost_table(result)),
        values=values,
        size=(max(3.6 * len(result.candidates), 7.2), 3.4),
        draw=lambda figure: _draw(figure, result),
    )


def block_rows(result: DecodeCalibration) -> list[dict[str, Any]]:
    """The plan and the measurements of each flow block, in sampling order."""
    return [
        {
            "block": found.block,
            "tokens": found.tokens,
            "segments": [describe(segment) for segment in result.plan.segments(found.block, found.tokens)],
            "guess": found.guess,
            "passes": result.measured.passes[found.block],
            "predicted_milliseconds": result.predicted_milliseconds(found.block),
            "milliseconds": result.planned.part_milliseconds[found.block],
            "sequential_milliseconds": result.sequential.part_milliseconds[found.block],
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


def as_a_distribution(result: DecodeCalibration) -> tuple[str, ...]:
    """How far the samples of a stored plan are from sequential decoding's as a distribution; nothing without a plan."""
    found = result.distribution
    if result.spec is None:
        return ()
    if found is None:
        return (f"as a distribution: not measured, since {LEAST_SAMPLES} samples of each take more than {SECONDS} s",)
    return (
        f"as a distribution: Fréchet distance {found.frechet:.3g} ({found.frechet_floor:.3g} between two sets of the exact "
        f"sampler), diversity {found.diversity:.3f}; {found.samples} samples",
    )


def limit(result: DecodeCalibration) -> str:
    """What keeps the plan from being faster, in words."""
    parts = result.planned.part_milliseconds
    longest = max((found.block for found in result.candidates), key=lambda block: parts[block])
    share = f"flow block {longest} takes {parts[longest] / result.planned.milliseconds:.0%} of the time"
    gain = result.next_gain
    if gain is None:
        return f"{share}; no larger budget saves {LEAST:.0%}"
    blocks = f"flow block{'s' * (len(gain.blocks) > 1)} {', '.join(map(str, gain.blocks))}"
    return f"{share}; next gain: {gain.saved:.0%} less time at a budget of about {gain.budget:.2g}, by {blocks}"


def by_students(result: DecodeCalibration) -> tuple[str, ...]:
    """How fast the students of the bundle are beside the plan; nothing where they do not run."""
    found = result.students
    if found is None:
        return ()
    blocks = f"flow block{'s' * (len(found.blocks) > 1)} {', '.join(map(str, found.blocks))}"
    return (
        f"{blocks} by students, which are not exact and never stored: {found.milliseconds:.1f} ms against "
        f"{found.plan_milliseconds:.1f} ms in turn, {found.plan_milliseconds / found.milliseconds:.2f} times faster "
        "(`--plan student`)",
    )


def describe(segment: Segment) -> str:
    """A segment in words."""
    if isinstance(segment, Steps):
        return f"{segment.tokens} steps" if segment.tokens > 1 else "1 step"
    if isinstance(segment, Student):
        return f"student, {segment.passes} passes"
    guess = "" if segment.guess == "noise" else f", from {segment.guess}"
    fixed = len(segment.advances or ()) if isinstance(segment, Window) else segment.passes
    passes = f" in {fixed}" if segment.tolerance is None else f", tolerance {segment.tolerance:.0e}"
    what = f"window {segment.width} over" if isinstance(segment, Window) else "chunk"
    return f"{what} {segment.tokens}{passes}{guess}"


def _plan_table(rows: list[dict[str, Any]]) -> ReportTable:
    return ReportTable(
        "Plan by flow block",
        "Predicted times add up what a pass and a step cost; measured and sequential times are those of whole batches.",
        ("flow block", "plan", "passes", "predicted", "measured", "sequential"),
        tuple(
            (
                str(row["block"]),
                "\n".join(row["segments"]),
                f"{row['passes']:.1f}",
                *(
                    milliseconds(row[name])
                    for name in ("predicted_milliseconds", "milliseconds", "sequential_milliseconds")
                ),
            )
            for row in rows
        ),
        words=("plan",),
    )


def _cost_table(result: DecodeCalibration) -> ReportTable:
    widths = sorted({run.tokens for cost in result.costs for run in cost.runs})
    rows = []
    for cost in result.costs:
        runs = {run.tokens: run.milliseconds for run in cost.runs}
        times = (cost.prefill_milliseconds, cost.step_milliseconds, *map(runs.get, widths))
        rows.append((str(cost.block), *map(milliseconds, times)))
    columns = ("flow block", "prefill", "1 token", *(f"{width} tokens" for width in widths))
    return ReportTable(
        "Costs", "Time of a pass over so many tokens, in the middle of the sequence.", columns, tuple(rows)
    )


def _draw(figure: "Figure", result: DecodeCalibration) -> None:
    """Error against passes for each flow block: chunks by width, windows by passes per token."""
    panels = figure.subplots(1, len(result.candidates), sharey=True, squeeze=False)[0]
    for panel, found in zip(panels, result.candidates, strict=True):
        for number, width in enumerate(_widths(found)):
            errors = np.maximum(block_curve(found.curves, width), SMALLEST)
            passes = [(index + 1) / width for index in range(len(errors))]
            panel.plot(passes, errors, color=COLOURS[number % len(COLOURS)], marker=".", label=f"chunk {width}")
        if found.windows:
            rate = [trial.passes / found.tokens for trial in found.windows]
            errors = np.maximum([trial.error**0.5 for trial in found.windows], SMALLEST)
            panel.plot(rate, errors, "kx", markersize=4, label="windows")
        panel.axvline(1.0, color=GREY, linewidth=1)
        panel.set(title=f"flow block {found.block}, guess: {found.guess}", xlabel="passes per token")
        panel.set(xscale="log", yscale="log")
    panels[0].set_ylabel("relative error of the block's tokens")
    fullest = max(panels, key=lambda panel: len(panel.get_lines()))
    figure.legend(*fullest.get_legend_handles_labels(), loc="outside right upper")


def _widths(found: BlockCandidates) -> list[int]:
    return sorted({curve.tokens for curve in found.curves if curve.start == 0})
