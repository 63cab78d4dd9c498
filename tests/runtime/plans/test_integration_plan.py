"""Integration plans: what may stand in one, and how they are asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plans.calibrated_integration_plan import CalibratedIntegrationPlan
from starflow.runtime.plans.integration_plan import (
    AdaptiveSteps,
    FixedSteps,
    default_plan,
    integration_plan,
    read_integration_plan,
)


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ((0.0,), "holds no step"),
        ((0.0, 0.5, 0.5, 1.0), "must increase"),
        ((0.1, 1.0), "times run from 0.1 to 1;"),
        ((0.0, 0.9), "times run from 0 to 0.9"),
        ((-0.1, 0.9), "times run from -0.1 to 0.9"),
    ],
)
def test_a_grid_runs_from_noise_to_data(times: tuple[float, ...], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FixedSteps(solver="euler", times=times)


@pytest.mark.parametrize(("solver", "stages"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_passes_are_steps_times_stages(solver: Any, stages: int) -> None:
    plan = FixedSteps(solver=solver, times=(0.0, 0.3, 0.7, 1.0))
    assert (plan.steps, plan.passes) == (3, 3 * stages)


def test_in_words() -> None:
    assert str(FixedSteps(solver="heun", times=(0.0, 0.5, 1.0))) == "heun, 2 steps"
    assert str(FixedSteps(solver="rk4", times=(0.0, 1.0))) == "rk4, 1 step"
    assert str(FixedSteps(solver="rk4", times=(0.0, 0.4, 1.0))) == "rk4, 2 steps, own grid"
    assert str(AdaptiveSteps(tolerance=1e-4)) == "dopri5, tolerance 0.0001"


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, 1.0, 2.0])
def test_a_tolerance_lies_between_0_and_1(tolerance: float) -> None:
    with pytest.raises(ValidationError):
        AdaptiveSteps(tolerance=tolerance)
    with pytest.raises(UsageError, match=f"tolerance {tolerance:g}: give a number between 0 and 1"):
        integration_plan("dopri5", tolerance=tolerance)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((), "heun, 16 steps"),
        (("euler",), "euler, 16 steps"),
        (("rk4", 3), "rk4, 3 steps"),
        ((None, 5), "heun, 5 steps"),
        (("dopri5",), "dopri5, tolerance 0.0001"),
        (("dopri5", None, 0.01), "dopri5, tolerance 0.01"),
        ((None, None, 0.5), "dopri5, tolerance 0.5"),
    ],
)
def test_what_is_left_out_takes_its_default(asked: tuple[Any, ...], expected: str) -> None:
    assert str(integration_plan(*asked)) == expected
    assert str(default_plan()) == "heun, 16 steps"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("dopri5", 4), "dopri5 chooses its own steps"),
        ((None, 4, 1e-3), "dopri5 chooses its own steps"),
        (("heun", None, 1e-3), "heun takes steps, not a tolerance"),
        (("heun", 4, 1e-3), "heun takes steps, not a tolerance"),
        (("rk5",), "'rk5' is not known"),
        (("heun", 0), "0 steps from noise to data; give at least 1"),
    ],
)
def test_what_cannot_be_asked_for(asked: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        integration_plan(*asked)


def test_plans_are_read_from_their_own_json(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for plan in (integration_plan("rk4", 3), integration_plan(tolerance=0.01)):
        path.write_text(plan.model_dump_json())
        assert read_integration_plan(path) == plan
    for content, says in (
        ({"solver": "heun", "tims": [0, 1]}, "times"),
        ({"solver": "dopri5", "tolerence": 0.1}, "tolerance"),
        ({"solvr": "heun", "times": [0, 1]}, "solver"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UsageError, match=says):
            read_integration_plan(path)
    with pytest.raises(UsageError, match="auto"):
        read_integration_plan(tmp_path / "none.json")


def test_a_stored_plan_states_what_it_replaces() -> None:
    values: dict[str, Any] = {
        "backend": "onnxruntime cpu", "variant": "cpu-fp32", "budget": 1e-3, "error": 0.0, "images": 1, "guidance": 0.0,
        "passes": 1.0, "milliseconds": 1.0, "default_error": 0.0, "default_milliseconds": 1.0,
        "plan": {"solver": "euler", "times": (0.0, 1.0)},
    }  # fmt: skip
    assert CalibratedIntegrationPlan.model_validate(values).plan == FixedSteps(solver="euler", times=(0.0, 1.0))
    for name, value in (("default_error", -1e-9), ("default_milliseconds", 0.0)):
        with pytest.raises(ValidationError, match=name):
            CalibratedIntegrationPlan.model_validate(values | {name: value})
