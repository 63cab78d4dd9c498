"""The search for the plans of a continuous flow that need the fewest passes within a budget of error.

Every pass of the network costs the same whatever the solver, so the search counts passes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from numpy.typing import NDArray

from starflow.calibration.plans.runs import relative_error
from starflow.runtime.ode.tableau import FIXED_STEP
from starflow.runtime.ode.time_grid import uniform_grid
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSolver, FixedSteps

GridKind = Literal["uniform", "equidistributed"]
MOST_STEPS = 512
REFERENCE_STEPS = 32  # steps of Runge's method at first; doubled until that changes nothing that counts
REFERENCE_SHARE = 0.1  # share of the budget by which the reference may still change
TOLERANCES = tuple(10 ** (-exponent / 2) for exponent in range(2, 13))


@dataclass(frozen=True)
class Trial:
    """A plan that was tried."""

    plan: FixedSteps | AdaptiveSteps
    grid: GridKind | None  # how its times were chosen; None where the solver chooses them
    passes: float  # runs of the network in a batch, on average
    error: float  # ||x - reference|| / ||reference||, infinite where the integration diverged


class Trials(Protocol):
    """Tries plans on given samples."""

    def grid(self, kind: GridKind, solver: FixedSolver, steps: int) -> tuple[float, ...]:
        """Times of so many steps."""

    def trial(self, plan: FixedSteps | AdaptiveSteps, grid: GridKind | None) -> Trial:
        """Run a plan and measure its error."""


def search_plans(runs: Trials, budget: float, on_solver: Callable[[str], object] = lambda solver: None) -> list[Trial]:
    """Try every solver: with fixed steps the fewest steps within the budget on each kind of grid, then tolerances.

    Args:
        budget: Largest relative error.

    Returns:
        Everything that was tried, in that order.
    """
    trials: list[Trial] = []

    def fewest() -> float:
        return min((trial.passes for trial in trials if trial.error <= budget), default=float("inf"))

    # The higher the order, the sooner a solver tells how few passes will do.
    for solver in get_args(FixedSolver)[::-1]:
        on_solver(solver)
        for kind in get_args(GridKind):
            trials.extend(fewest_steps(runs, solver, kind, budget, 1.5 * fewest()))
    on_solver("dopri5")
    for tolerance in TOLERANCES:
        trials.append(runs.trial(AdaptiveSteps(tolerance=tolerance), None))
        if trials[-1].error <= budget or trials[-1].passes > 2 * fewest():
            break
    return trials


def fewest_steps(
    runs: Trials, solver: FixedSolver, kind: GridKind, budget: float, most_passes: float
) -> Iterator[Trial]:
    """The trials of one solver and kind of grid: steps are doubled until the error is within the budget, then bisected."""
    most = min(most_passes / FIXED_STEP[solver].stages, MOST_STEPS)
    too_few, enough, steps = 0, None, 1
    while enough is None or enough - too_few > 1:
        if steps > most:
            return
        tried = runs.trial(FixedSteps(solver=solver, times=runs.grid(kind, solver, steps)), kind)
        yield tried
        if tried.error <= budget:
            enough = steps
        else:
            too_few = steps
        steps = 2 * steps if enough is None else (too_few + enough) // 2


def fine_reference(sample: Callable[[FixedSteps], NDArray], budget: float) -> FixedSteps:
    """Runge's method with so many steps that half as many end in the same place, next to the budget, or UsageError."""
    plan = FixedSteps(solver="rk4", times=uniform_grid(REFERENCE_STEPS))
    before = sample(plan)
    while True:
        plan = FixedSteps(solver="rk4", times=uniform_grid(2 * plan.steps))
        end = sample(plan)
        change = relative_error(before, end)
        if change <= REFERENCE_SHARE * budget:
            return plan
        if plan.steps >= MOST_STEPS:
            raise UsageError(
                f"even {plan.steps} steps of rk4 are no reference for a budget of {budget:g}: half as many differ by "
                f"{change:.1e}; give a larger --budget"
            )
        before = end
