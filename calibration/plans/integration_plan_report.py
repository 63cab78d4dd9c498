"""What a calibration of an integration found, as a table, as JSON and as a plot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from starflow.calibration.plans.decode_plan_report import COLOURS
from starflow.calibration.plans.integration_plan import IntegrationCalibration, Trial
from starflow.runtime.plain.atomic_write import atomic_file
from starflow.runtime.plans.integration_plan import default_plan
from starflow.runtime.reports.tables import plain_table


def print_report(result: IntegrationCalibration) -> None:
    """For every solver and grid the fewest passes within the budget, what was timed, and what was chosen."""
    spec = result.spec
    table = plain_table()
    table.add_column("solver")
    table.add_column("grid")
    for column in ("passes", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    for trial in _fewest(result):
        table.add_row(str(trial.plan), trial.grid or "its own", f"{trial.passes:g}", f"{trial.error:.1e}")
    console = Console(highlight=False)
    console.print(table)
    for plan, milliseconds in result.timed:
        console.print(f"{plan}: {milliseconds:.2f} ms a batch")
    console.print(
        f"chosen: {spec.plan}; {spec.passes:g} passes, {spec.milliseconds:.2f} ms, error {spec.error:.1e} against "
        f"{result.reference}",
        soft_wrap=True,
    )
    console.print(
        f"without a plan ({default_plan()}): {spec.default_milliseconds:.2f} ms, error {spec.default_error:.1e}",
        soft_wrap=True,
    )
    console.print("stored; `--plan auto` takes it")


def as_json(result: IntegrationCalibration) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    return {
        **result.spec.model_dump(mode="json"),
        "reference": result.reference.model_dump(mode="json"),
        "trials": [
            {
                "plan": trial.plan.model_dump(mode="json"),
                "grid": trial.grid,
                "passes": trial.passes if np.isfinite(trial.passes) else None,
                "error": trial.error if np.isfinite(trial.error) else None,
            }
            for trial in result.trials
        ],
        "timed": [{"plan": str(plan), "milliseconds": milliseconds} for plan, milliseconds in result.timed],
    }


def write_plot(result: IntegrationCalibration, path: Path) -> None:
    """Error against passes, one line for each solver and kind of grid.

    Raises:
        UsageError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    solvers: list[str] = list(dict.fromkeys(trial.plan.solver for trial in result.trials))
    for (solver, grid), trials in _curves(result).items():
        found = sorted((t for t in trials if np.isfinite(t.error)), key=lambda t: t.passes)
        axes.plot(
            [t.passes for t in found],
            [t.error for t in found],
            color=COLOURS[solvers.index(solver)],
            linestyle="--" if grid == "equidistributed" else "-",
            marker=".",
            label=f"{solver}, {grid} grid" if grid else solver,
        )
    axes.axhline(result.spec.budget, color="#8a8f98", linewidth=1)
    axes.plot(result.spec.passes, result.spec.error, "ko", markersize=8, fillstyle="none", label="chosen")
    axes.set(xscale="log", yscale="log", xlabel="network passes", ylabel="relative error of samples")
    axes.grid(color="#eceef1")
    axes.legend(fontsize=8, frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=120)


def _curves(result: IntegrationCalibration) -> dict[tuple[str, str | None], list[Trial]]:
    curves: dict[tuple[str, str | None], list[Trial]] = {}
    for trial in result.trials:
        curves.setdefault((trial.plan.solver, trial.grid), []).append(trial)
    return curves


def _fewest(result: IntegrationCalibration) -> Iterator[Trial]:
    """Of every solver and grid, the fewest passes within the budget, if any are."""
    for trials in _curves(result).values():
        within = [trial for trial in trials if trial.error <= result.spec.budget]
        if within:
            yield min(within, key=lambda trial: trial.passes)
