"""Choosing how a continuous flow is integrated: the solver and grid of least time whose samples stay within a budget.

Every pass of the network costs the same whatever the solver, so the search counts passes; which of the best is fastest is
measured. Errors are those of finished samples against a fine integration of the same velocity on the same backend.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from starflow.calibration.cases import Cases
from starflow.calibration.plans.time_density import acceleration, equidistributed
from starflow.runtime.backends.base import Backend
from starflow.runtime.bundle.bundle import Bundle
from starflow.runtime.bundle.manifest import Variant
from starflow.runtime.ode.tableau import FIXED_STEP
from starflow.runtime.ode.time_grid import uniform_grid
from starflow.runtime.plain.errors import IntegrationError, UsageError
from starflow.runtime.plain.progress import Report, no_report
from starflow.runtime.plans.calibrated_integration_plan import CalibratedIntegrationPlan
from starflow.runtime.plans.integration_plan import (
    AdaptiveSteps,
    FixedSolver,
    FixedSteps,
    default_plan,
)
from starflow.runtime.sampler import Sampler
from starflow.runtime.traces.case import Case
from starflow.runtime.traces.continuous import path_states

GridKind = Literal["uniform", "equidistributed"]
MOST_STEPS = 512
REFERENCE_STEPS = 32  # of Runge's method at first; doubled until that changes nothing that counts
REFERENCE_SHARE = 0.1  # of the budget, which the reference may still change by
PATH_STEPS = 64  # of Runge's method, along which the paths' bend is measured
TOLERANCES = tuple(10 ** (-exponent / 2) for exponent in range(2, 13))
TIMED = 3  # plans of fewest passes that are timed

Plan = FixedSteps | AdaptiveSteps


@dataclass(frozen=True)
class Trial:
    """A plan that was tried.

    Attributes:
        plan: The plan.
        grid: How its times were chosen; None where the solver chooses them.
        passes: Runs of the network in a batch, on average.
        error: ||x - reference|| / ||reference||, infinite where it diverged.
    """

    plan: Plan
    grid: GridKind | None
    passes: float
    error: float


@dataclass(frozen=True)
class IntegrationCalibration:
    """What came of a calibration.

    Attributes:
        spec: The plan as a bundle keeps it.
        reference: What samples were compared with.
        trials: Everything that was tried, in that order.
        timed: Milliseconds of a batch, of the plans that were timed.
    """

    spec: CalibratedIntegrationPlan
    reference: FixedSteps
    trials: tuple[Trial, ...]
    timed: tuple[tuple[Plan, float], ...]


def calibrate_integration(
    bundle: Bundle,
    variant: Variant,
    backend: Backend,
    cases: Cases,
    budget: float,
    repetitions: int,
    *,
    progress: Report = no_report,
) -> IntegrationCalibration:
    """Find the plan of least time whose error stays in the budget.

    Args:
        bundle: The bundle of a continuous flow.
        variant: The variant to plan for.
        backend: Runs it.
        cases: What plans are searched on, and what they are judged on.
        budget: Largest relative error of finished samples.
        repetitions: Of every timing.
        progress: Told of every stage.

    Raises:
        UsageError: no plan stays within the budget.
        IntegrationError: the velocity cannot be integrated at all.
    """
    total = len(FIXED_STEP) + 5
    progress(0, total, "reference")
    search = _Runs(bundle, variant, backend, cases.calibrate, budget)
    progress(1, total, "grids")
    trials: list[Trial] = []
    within: list[Trial] = []
    for number, solver in enumerate(
        get_args(FixedSolver)[::-1]
    ):  # the higher the order, the sooner it tells how few will do
        progress(2 + number, total, solver)
        for kind in get_args(GridKind):
            fewest = min((trial.passes for trial in within), default=float("inf"))
            for trial in _fewest_steps(search, solver, kind, budget, fewest * 1.5):
                trials.append(trial)
                within += [trial] if trial.error <= budget else []
    progress(total - 3, total, "dopri5")
    for tolerance in TOLERANCES:
        trial = search.trial(AdaptiveSteps(tolerance=tolerance), None)
        trials.append(trial)
        within += [trial] if trial.error <= budget else []
        if trial.error <= budget or trial.passes > 2 * min((t.passes for t in within), default=float("inf")):
            break
    if not within:
        raise UsageError(
            f"no plan of up to {MOST_STEPS} steps keeps an error of {budget:g}; the smallest was "
            f"{min(trial.error for trial in trials):.1e}: give a larger --budget"
        )
    progress(total - 2, total, "checking")
    check = _Runs(bundle, variant, backend, cases.check, budget, search.reference)
    kept = list(_kept(check, sorted(within, key=lambda trial: trial.passes), budget))
    if not kept:
        raise UsageError(f"no plan that keeps an error of {budget:g} does so on other samples; give more --images")
    progress(total - 1, total, "timing")
    default = default_plan()
    times = check.time([*(trial.plan for trial in kept), default], repetitions)
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
    progress(total, total)
    timed = tuple(zip((*(trial.plan for trial in kept), default), times, strict=True))
    return IntegrationCalibration(spec, search.reference, tuple(trials), timed)


class _Runs:
    """Runs plans on given samples, and knows where they should end."""

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        backend: Backend,
        case: Case,
        budget: float,
        reference: FixedSteps | None = None,
    ) -> None:
        self._bundle, self._variant, self._backend, self._case = bundle, variant, backend, case
        self.reference = reference or self._fine_enough(budget)
        self._end = self._sample(self.reference)[0]
        self._density: NDArray | None = None

    def trial(self, plan: Plan, grid: GridKind | None) -> Trial:
        """Run a plan and measure its error."""
        try:
            x, passes = self._sample(plan)
        except IntegrationError:
            return Trial(plan, grid, float(plan.passes) if isinstance(plan, FixedSteps) else np.inf, np.inf)
        return Trial(plan, grid, passes, _relative(x, self._end))

    def grid(self, kind: GridKind, solver: FixedSolver, steps: int) -> tuple[float, ...]:
        """Times of so many steps."""
        if kind == "uniform":
            return uniform_grid(steps)
        if self._density is None:
            self._density = self._acceleration()
        return equidistributed(self._density, FIXED_STEP[solver].order, steps)

    def time(self, plans: Sequence[Plan], repetitions: int) -> list[float]:
        """Median milliseconds of a batch by each plan, in turn."""
        taken: list[list[float]] = [[] for _ in plans]
        for repetition in range(repetitions + 1):
            for plan, times in zip(plans, taken, strict=True):
                start = time.perf_counter()
                self._sample(plan, self._bundle.manifest.batch)
                if repetition:
                    times.append(1000 * (time.perf_counter() - start))
        return [statistics.median(times) for times in taken]

    def _fine_enough(self, budget: float) -> FixedSteps:
        """Runge's method with so many steps that half as many end in the same place, next to the budget."""
        plan = FixedSteps(solver="rk4", times=uniform_grid(REFERENCE_STEPS))
        before = self._sample(plan)[0]
        while True:
            plan = FixedSteps(solver="rk4", times=uniform_grid(2 * plan.steps))
            end = self._sample(plan)[0]
            change = _relative(before, end)
            if change <= REFERENCE_SHARE * budget:
                return plan
            if plan.steps >= MOST_STEPS:
                raise UsageError(
                    f"even {plan.steps} steps of rk4 are no reference for a budget of {budget:g}: half as many differ by "
                    f"{change:.1e}; give a larger --budget"
                )
            before = end

    def _acceleration(self) -> NDArray:
        """How much the paths bend, at equal times."""
        plan = FixedSteps(solver="rk4", times=uniform_grid(PATH_STEPS))
        states = path_states(self._bundle, self._backend, self._case, plan)
        start = self._case.noise.reshape(len(states), 1, -1)
        return acceleration(np.concatenate([start, states], axis=1))

    def _sample(self, plan: Plan, count: int | None = None) -> tuple[NDArray, float]:
        """Samples, and passes of a batch."""
        case, passes = self._case, list[int]()
        condition: Any = None if case.condition is None else case.condition[:count]
        x = Sampler(self._bundle, self._variant, self._backend, plan).generate(
            case.noise[:count],
            condition,
            case.null_condition,
            guidance=case.guidance,
            on_passes=lambda _, number: passes.append(number),
        )
        return x, statistics.fmean(passes)


def _fewest_steps(
    runs: _Runs, solver: FixedSolver, kind: GridKind, budget: float, most_passes: float
) -> Iterator[Trial]:
    """Doubled until the error is in the budget, then halved in between: the trials of one solver and kind of grid."""
    stages = FIXED_STEP[solver].stages

    def trial(steps: int) -> Trial:
        return runs.trial(FixedSteps(solver=solver, times=runs.grid(kind, solver, steps)), kind)

    too_few, steps = 0, 1
    while steps * stages <= min(most_passes, MOST_STEPS * stages):
        tried = trial(steps)
        yield tried
        if tried.error <= budget:
            break
        too_few, steps = steps, 2 * steps
    else:
        return
    enough = steps
    while enough - too_few > 1:
        steps = (too_few + enough) // 2
        tried = trial(steps)
        yield tried
        if tried.error <= budget:
            enough = steps
        else:
            too_few = steps


def _kept(runs: _Runs, within: Sequence[Trial], budget: float) -> Iterator[Trial]:
    """The trials of fewest passes that stay within the budget on other samples too, measured there."""
    kept = 0
    for trial in within:
        checked = runs.trial(trial.plan, trial.grid)
        if checked.error <= budget:
            yield checked
            kept += 1
            if kept == TIMED:
                return


def _relative(x: NDArray, end: NDArray) -> float:
    error = float(np.linalg.norm(x.astype(np.float64) - end) / np.linalg.norm(end.astype(np.float64)))
    return error if np.isfinite(error) else float("inf")
