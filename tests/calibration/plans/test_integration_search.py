"""The search over solvers where errors follow the textbook: C h^p."""

import math

import numpy as np
import pytest

from starflow.calibration.plans.integration_search import (
    MOST_STEPS,
    TOLERANCES,
    GridKind,
    Trial,
    fewest_steps,
    fine_reference,
    search_plans,
)
from starflow.calibration.plans.runs import relative_error
from starflow.runtime.ode.tableau import FIXED_STEP
from starflow.runtime.ode.time_grid import uniform_grid
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSolver, FixedSteps


class Textbook:
    """Errors are `constant` / steps^order, half of that on an equidistributed grid; a tolerance errs by ten times itself."""

    def __init__(self, constant: float = 1.0, adaptive_passes: float = 20.0) -> None:
        self.constant, self.adaptive_passes = constant, adaptive_passes

    def grid(self, kind: GridKind, solver: FixedSolver, steps: int) -> tuple[float, ...]:
        return uniform_grid(steps) if kind == "uniform" else tuple(t**2 for t in uniform_grid(steps))

    def trial(self, plan: FixedSteps | AdaptiveSteps, grid: GridKind | None) -> Trial:
        if isinstance(plan, AdaptiveSteps):
            return Trial(plan, grid, self.adaptive_passes * -math.log10(plan.tolerance), 10 * plan.tolerance)
        assert plan.times == self.grid(grid or "uniform", plan.solver, plan.steps)
        share = 1.0 if grid == "uniform" else 0.5
        return Trial(plan, grid, plan.passes, share * self.constant / plan.steps ** FIXED_STEP[plan.solver].order)


def steps_of(trials: list[Trial]) -> list[int]:
    return [trial.plan.steps for trial in trials if isinstance(trial.plan, FixedSteps)]


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize("budget", [0.6, 0.3, 0.01, 0.0123])
def test_finds_the_fewest_steps(solver: FixedSolver, budget: float) -> None:
    trials = list(fewest_steps(Textbook(), solver, "uniform", budget, math.inf))
    enough = math.ceil(budget ** (-1 / FIXED_STEP[solver].order) - 1e-9)
    assert min(t.plan.steps for t in trials if t.error <= budget and isinstance(t.plan, FixedSteps)) == enough
    assert enough == 1 or enough - 1 in steps_of(trials), "one fewer was tried and was too few"
    assert len(set(steps_of(trials))) == len(trials) <= 2 * math.ceil(math.log2(enough)) + 1


def test_steps_are_doubled_then_bisected() -> None:
    assert steps_of(list(fewest_steps(Textbook(), "euler", "uniform", 1 / 11, math.inf))) == [
        1,
        2,
        4,
        8,
        16,
        12,
        10,
        11,
    ]
    assert steps_of(list(fewest_steps(Textbook(), "euler", "uniform", 1.0, math.inf))) == [1]
    assert steps_of(list(fewest_steps(Textbook(), "euler", "uniform", 0.5, math.inf))) == [1, 2]


def test_no_more_passes_than_could_still_pay() -> None:
    assert steps_of(list(fewest_steps(Textbook(), "rk4", "uniform", 1e-9, 16))) == [1, 2, 4]
    assert steps_of(list(fewest_steps(Textbook(), "rk4", "uniform", 1e-9, 15.9))) == [1, 2]
    assert steps_of(list(fewest_steps(Textbook(), "euler", "uniform", 1e-9, math.inf)))[-1] == MOST_STEPS == 512
    assert list(fewest_steps(Textbook(), "rk4", "uniform", 1.0, 3)) == []


def test_solvers_of_high_order_come_first_and_bound_the_others() -> None:
    told: list[str] = []
    trials = search_plans(Textbook(), 0.01, told.append)
    assert told == ["rk4", "heun", "midpoint", "euler", "dopri5"]
    for kind, fewest in (("uniform", 16), ("equidistributed", 12)):
        assert min(t.passes for t in trials if (t.plan.solver, t.grid) == ("rk4", kind) and t.error <= 0.01) == fewest
    # Heun's method needs 10 steps, and 20 passes are more than one and a half times 12.
    assert max(t.passes for t in trials if t.plan.solver == "heun") <= 18
    assert max(t.passes for t in trials if t.plan.solver == "euler") == 16
    assert {t.grid for t in trials if t.plan.solver == "euler"} == {"uniform", "equidistributed"}


def test_tolerances_are_tightened_until_one_is_within_the_budget() -> None:
    trials = [
        t.plan.tolerance for t in search_plans(Textbook(adaptive_passes=0.1), 0.01) if isinstance(t.plan, AdaptiveSteps)
    ]
    assert trials == pytest.approx([1e-1, 10**-1.5, 1e-2, 10**-2.5, 1e-3])
    assert TOLERANCES[0] == 0.1 and TOLERANCES[-1] == 1e-6


def test_tolerances_stop_where_they_cost_more_than_twice_the_best() -> None:
    # The best fixed plan takes 12 passes; a tolerance 10 ^ -e takes 20 e.
    trials = [t for t in search_plans(Textbook(), 0.01) if isinstance(t.plan, AdaptiveSteps)]
    assert [t.passes for t in trials] == pytest.approx([20, 30]), "24 would still pay"
    trials = [t for t in search_plans(Textbook(adaptive_passes=12), 0.01) if isinstance(t.plan, AdaptiveSteps)]
    assert [t.passes for t in trials] == pytest.approx([12, 18, 24, 30])


def test_without_any_plan_in_the_budget_every_tolerance_is_tried() -> None:
    trials = search_plans(Textbook(constant=1e20), 1e-7)
    assert [t.plan.tolerance for t in trials if isinstance(t.plan, AdaptiveSteps)] == list(TOLERANCES)
    assert not [t for t in trials if t.error <= 1e-7]


def converging(order: int, constant: float) -> tuple[list[int], object]:
    seen: list[int] = []

    def sample(plan: FixedSteps) -> np.ndarray:
        seen.append(plan.steps)
        assert plan.solver == "rk4"
        return np.array([1.0 + constant / plan.steps**order])

    return seen, sample


def test_the_reference_is_as_fine_as_the_budget_needs() -> None:
    # Half the steps differ by 15 c / (2n)^4 of 1.
    seen, sample = converging(4, 1.0)
    assert fine_reference(sample, 1e-4).steps == 64 and seen == [32, 64]  # type: ignore[arg-type]
    seen, sample = converging(4, 100.0)
    assert fine_reference(sample, 1e-4).steps == 128 and seen == [32, 64, 128]  # type: ignore[arg-type]
    assert fine_reference(converging(4, 100.0)[1], 1e-5).steps == 256  # type: ignore[arg-type]


def test_no_reference_within_the_most_steps() -> None:
    seen, sample = converging(1, 1.0)
    with pytest.raises(UsageError, match=r"even 512 steps of rk4 .*1e-05: half as many differ by 1\.9e-03; .*--budget"):
        fine_reference(sample, 1e-5)  # type: ignore[arg-type]
    assert seen == [32, 64, 128, 256, 512]


def test_relative_errors() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 0.0])) == pytest.approx(4 / 3)
    assert relative_error(np.array([np.nan]), np.array([1.0])) == math.inf
