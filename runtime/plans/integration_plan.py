"""Integration plans: how a continuous flow is integrated, by a solver and a time grid or by a tolerance."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from starflow.runtime.ode.tableau import FIXED_STEP, fixed_step_tableau
from starflow.runtime.ode.time_grid import grid_fault, uniform_grid
from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.validation import Part, read_plan_file

FixedSolver = Literal["euler", "midpoint", "heun", "rk4"]
DEFAULT_SOLVER: FixedSolver = "heun"
DEFAULT_STEPS = 16
DEFAULT_TOLERANCE = 1e-4


class FixedSteps(Part):
    """A solver with fixed steps over a grid of times from noise (0) to data (1)."""

    solver: FixedSolver
    times: tuple[float, ...]

    @model_validator(mode="after")
    def _from_noise_to_data(self) -> "FixedSteps":
        fault = grid_fault(self.times)
        if fault:
            raise ValueError(fault)
        if self.times[0] != 0 or self.times[-1] != 1:
            raise ValueError(
                f"times run from {self.times[0]:g} to {self.times[-1]:g}; they must run from 0 (noise) to 1 (data)"
            )
        return self

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def passes(self) -> int:
        """Number of runs of the network."""
        return self.steps * FIXED_STEP[self.solver].stages

    def __str__(self) -> str:
        grid = "" if self.times == uniform_grid(self.steps) else ", own grid"
        return f"{self.solver}, {self.steps} step{'' if self.steps == 1 else 's'}{grid}"


class AdaptiveSteps(Part):
    """The solver of Dormand and Prince, whose steps are as long as a tolerance allows; see `runtime/ode/dormand_prince.py`."""

    solver: Literal["dopri5"] = "dopri5"
    tolerance: float = Field(gt=0, lt=1)

    def __str__(self) -> str:
        return f"dopri5, tolerance {self.tolerance:g}"


IntegrationPlan = Annotated[FixedSteps | AdaptiveSteps, Field(discriminator="solver")]


def default_plan() -> FixedSteps:
    """The plan that runs if none is stored and none is asked for."""
    return FixedSteps(solver=DEFAULT_SOLVER, times=uniform_grid(DEFAULT_STEPS))


def integration_plan(
    solver: str | None = None, steps: int | None = None, tolerance: float | None = None
) -> FixedSteps | AdaptiveSteps:
    """The plan for a user's choice of values; None takes the default.

    Args:
        solver: `euler`, `midpoint`, `heun` or `rk4`, which take equal steps, or `dopri5`, which chooses its steps.
        tolerance: Error allowed in a step of `dopri5`; it implies that solver.

    Raises:
        UsageError: there is no such solver, two values exclude each other, or one is out of range.
    """
    if solver == "dopri5" or (solver is None and tolerance is not None):
        if steps is not None:
            raise UsageError("dopri5 chooses its own steps; give a tolerance instead of steps")
        tolerance = DEFAULT_TOLERANCE if tolerance is None else tolerance
        if not 0 < tolerance < 1:
            raise UsageError(f"tolerance {tolerance:g}: give a number between 0 and 1, such as 1e-4")
        return AdaptiveSteps(tolerance=tolerance)
    solver = DEFAULT_SOLVER if solver is None else solver
    fixed_step_tableau(solver)
    if tolerance is not None:
        raise UsageError(f"{solver} takes steps, not a tolerance; dopri5 takes a tolerance")
    return FixedSteps.model_validate(
        {"solver": solver, "times": uniform_grid(DEFAULT_STEPS if steps is None else steps)}
    )


def read_integration_plan(path: Path) -> FixedSteps | AdaptiveSteps:
    """Read a plan's JSON file; UsageError if it is missing, not JSON, or not an integration plan."""
    adapter: TypeAdapter[FixedSteps | AdaptiveSteps] = TypeAdapter(IntegrationPlan)
    return read_plan_file(path, adapter.validate_python, instead="auto", known_fields=("solver", "times", "tolerance"))
