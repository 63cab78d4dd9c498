"""The report of an integration plan's calibration."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from starflow.calibration.plans.integration_plan import IntegrationCalibration
from starflow.calibration.plans.integration_search import Trial
from starflow.calibration.plans.plan_report import PlanReport, ReportTable, milliseconds
from starflow.runtime.plans.integration_plan import default_plan
from starflow.runtime.reports.plot import COLOURS, LIMIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def integration_report(result: IntegrationCalibration) -> PlanReport:
    """Report a calibration."""
    spec = result.spec
    values = {
        "stored": True,
        **spec.model_dump(mode="json"),
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
        "timed": [{"plan": str(plan), "milliseconds": time} for plan, time in result.timed],
    }
    facts = (
        *(f"{plan}: {time:.2f} ms a batch" for plan, time in result.timed),
        f"chosen: {spec.plan}; {spec.passes:g} passes, {spec.milliseconds:.2f} ms, error {spec.error:.1e} against "
        f"{result.reference}, budget {spec.budget:g}",
        f"without a plan ({default_plan()}): {spec.default_milliseconds:.2f} ms, error {spec.default_error:.1e}",
    )
    within = "For each solver and grid, the plan of fewest passes within the budget, on the samples of the search."
    timed = tuple((str(plan), milliseconds(time)) for plan, time in result.timed)
    return PlanReport(
        stored=True,
        outcome="stored; `--plan auto` takes it",
        facts=facts,
        tables=(
            _table("Plans within the budget", within, _fewest(result)),
            ReportTable("Times", "Of a batch, the default plan last.", ("plan", "measured"), timed),
            _table("All trials", "In the order in which they were tried, on the samples of the search.", result.trials),
        ),
        values=values,
        size=(6.4, 4.2),
        draw=lambda figure: _draw(figure, result),
    )


def _table(title: str, text: str, trials: Iterable[Trial]) -> ReportTable:
    rows = tuple((str(t.plan), t.grid or "its own", f"{t.passes:g}", f"{t.error:.1e}") for t in trials)
    return ReportTable(title, text, ("solver", "grid", "passes", "error"), rows, words=("grid",))


def _draw(figure: "Figure", result: IntegrationCalibration) -> None:
    """Error against passes, one line for each solver and kind of grid."""
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
    axes.axhline(result.spec.budget, color=LIMIT, linewidth=1, label="budget")
    axes.plot(result.spec.passes, result.spec.error, "ko", markersize=8, fillstyle="none", label="chosen")
    axes.set(xscale="log", yscale="log", xlabel="network passes", ylabel="relative error of samples")
    axes.legend()


def _curves(result: IntegrationCalibration) -> dict[tuple[str, str | None], list[Trial]]:
    curves: dict[tuple[str, str | None], list[Trial]] = {}
    for trial in result.trials:
        curves.setdefault((trial.plan.solver, trial.grid), []).append(trial)
    return curves


def _fewest(result: IntegrationCalibration) -> list[Trial]:
    """For each solver and grid, the trial of fewest passes within the budget, if there is one."""
    within = ([t for t in trials if t.error <= result.spec.budget] for trials in _curves(result).values())
    return [min(trials, key=lambda trial: trial.passes) for trials in within if trials]
