"""Choosing how a continuous flow is integrated: the solver and grid of least time whose samples stay within a budget.

The search counts passes of the network; which of the best plans is fastest is measured. Errors are those of finished samples
against a fine integration of the same velocity on the same backend.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.cases import Cases
from starflow.calibration.plans.integration_search import MOST_STEPS, GridKind, Trial, fine_reference, search_plans
from starflow.calibration.plans.runs import PlanOptions, PlanRuns
from starflow.calibration.plans.time_density import acceleration, equidistributed
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.ode.tableau import FIXED_STEP
from starflow.runtime.ode.time_grid import uniform_grid
from starflow.runtime.plain.errors import IntegrationError, UsageError
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.plans.calibrated_integration_plan import CalibratedIntegrationPlan
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSolver, FixedSteps, default_plan
from starflow.runtime.traces.continuous import path_states

PATH_STEPS = 64  # steps of Runge's method along which the bend of the paths is measured
TIMED = 3  # number of plans, those of fewest passes, that are timed

Plan = FixedSteps | AdaptiveSteps


@dataclass(frozen=True)
class IntegrationCalibration:
    """The result of a calibration."""

    spec: CalibratedIntegrationPlan  # the plan as a bundle keeps it
    reference: FixedSteps  # the fine integration that samples were compared with
    trials: tuple[Trial, ...]  # everything that was tried, in that order
    timed: tuple[tuple[Plan, float], ...]  # the plans that were timed, each with the milliseconds of a batch


class _Runs(PlanRuns):
    """Tries plans, and knows where paths bend."""

    def trial(self, plan: Plan, grid: GridKind | None) -> Trial:
        try:
            found = self.measure(plan)
        except IntegrationError:
            return Trial(plan, grid, float(plan.passes) if isinstance(plan, FixedSteps) else np.inf, np.inf)
        return Trial(plan, grid, found.passes[0], found.error)

    def grid(self, kind: GridKind, solver: FixedSolver, steps: int) -> tuple[float, ...]:
        if kind == "uniform":
            return uniform_grid(steps)
        return equidistributed(self._acceleration, FIXED_STEP[solver].order, steps)

    @cached_property
    def _acceleration(self) -> NDArray:
        """How much the paths bend, at equal times."""
        plan = FixedSteps(solver="rk4", times=uniform_grid(PATH_STEPS))
        states = path_states(self.bundle, self.backend, self.case, plan)
        start = self.case.noise.reshape(len(states), 1, -1)
        return acceleration(np.concatenate([start, states], axis=1))


def calibrate_integration(
    bundle: Bundle,
    variant: Variant,
    backend: Backend,
    cases: Cases,
    options: PlanOptions,
    *,
    progress: Report = no_report,
) -> IntegrationCalibration:
    """Find the plan of least time whose error stays within the budget.

    Args:
        cases: Plans are searched on the first and judged on the second.

    Raises:
        UsageError: no plan stays within the budget.
        IntegrationError: the velocity cannot be integrated at all.
    """
    budget = options.budget
    stages, done = ("reference", *FIXED_STEP, "dopri5", "checking", "timing"), 0

    def stage(name: str) -> None:
        nonlocal done
        progress(done, len(stages), name)
        done += 1

    stage("reference")
    samples = PlanRuns(bundle, variant, backend, cases.calibrate)
    reference = fine_reference(lambda plan: samples.sample(plan)[0], budget)
    trials = search_plans(_Runs(bundle, variant, backend, cases.calibrate, reference), budget, stage)
    within = sorted((trial for trial in trials if trial.error <= budget), key=lambda trial: trial.passes)
    if not within:
        smallest = min(trial.error for trial in trials)
        raise UsageError(
            f"no plan of up to {MOST_STEPS} steps keeps an error of {budget:g}; the smallest was {smallest:.1e}: "
            "give a larger --budget"
        )
    stage("checking")
    check = _Runs(bundle, variant, backend, cases.check, reference)
    checked = (check.trial(trial.plan, trial.grid) for trial in within)
    kept = list(islice((trial for trial in checked if trial.error <= budget), TIMED))
    if not kept:
        raise UsageError(f"no plan that keeps an error of {budget:g} does so on other samples; give more --images")
    stage("timing")
    default = default_plan()
    plans = [*(trial.plan for trial in kept), default]
    times = [found.milliseconds for found in check.time(plans, options.repetitions)]
    best = min(range(len(kept)), key=lambda index: times[index])
    spec = CalibratedIntegrationPlan(
        backend=backend.name,
        variant=variant.name,
        budget=budget,
        error=kept[best].error,
        images=len(cases.check.noise),
        guidance=cases.check.guidance,
        passes=kept[best].passes,
        milliseconds=times[best],
        default_error=check.trial(default, "uniform").error,
        default_milliseconds=times[-1],
        plan=kept[best].plan,
    )
    progress(len(stages), len(stages))
    return IntegrationCalibration(spec, reference, tuple(trials), tuple(zip(plans, times, strict=True)))
