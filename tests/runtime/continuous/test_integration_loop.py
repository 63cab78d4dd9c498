"""The loop over passes: any runner, given or adaptive steps, tables in parts, and divergence with its step and time."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.runtime.backends.continuous_runner import ContinuousRunner
from starflow.runtime.bundle.graph_spec import FileSpec, GraphSpec, TensorSpec
from starflow.runtime.continuous.integration_loop import integrate_batch
from starflow.runtime.ode.fixed_step import pass_table, walk
from starflow.runtime.ode.tableau import FIXED_STEP
from starflow.runtime.ode.time_grid import uniform_grid
from starflow.runtime.plain.errors import IntegrationError, UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps, integration_plan

TABLE = TensorSpec(name="passes", dtype="float32", shape=(5, 4), role="passes")
GRAPH = GraphSpec(
    block=0, file=FileSpec(path="g", bytes=0, sha256="0" * 64), inputs=(TABLE,), outputs=(), weight_bytes=0
)


class FunctionRunner(ContinuousRunner):
    """A velocity graph whose network is a formula; its table holds five passes, so that most integrations need several."""

    def __init__(self, velocity: Callable[[NDArray, float], NDArray]) -> None:
        super().__init__(GRAPH)
        self._velocity = velocity
        self._buffers: dict[str, NDArray] = {"x": np.zeros(1), "total": np.zeros(1)}
        self.reads = 0

    def store(self, name: str, value: NDArray) -> None:
        self._buffers[name] = np.array(value, np.int64 if name == "pass" else np.float32)

    def fetch(self, name: str) -> NDArray:
        self.reads += name == "x"
        return self._buffers[name]

    def advance(self, passes: int) -> None:
        state = self._buffers
        for _ in range(passes):
            time, ahead, share, last = state["passes"][state["pass"][0]]
            v = state["velocity"] = self._velocity(state["point"], float(time)).astype(np.float32)
            state["total"] = state["total"] + share * v
            state["x"] = state["total"] if last else state["x"]
            state["point"] = state["x"] + ahead * v
            state["pass"] = state["pass"] + 1


def swirl(x: NDArray, t: float) -> NDArray:
    return np.stack([-x[:, 1], x[:, 0]], axis=1) * (1 + 2 * t)


START = np.array([[1.0, 0.0], [0.5, -2.0]], np.float32)


def turned(x: NDArray, angle: float) -> NDArray:
    return x @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_passes_in_parts_are_the_walk_on_the_host(solver: str) -> None:
    plan = integration_plan(solver, 7)
    runner = FunctionRunner(swirl)
    times: list[float] = []
    found = integrate_batch(runner, START, plan, times.append)
    *_, expected = walk(swirl, START, pass_table(FIXED_STEP[solver], uniform_grid(7)))
    np.testing.assert_allclose(found.x, expected, atol=1e-6)
    assert found.passes == 7 * FIXED_STEP[solver].stages and found.times == uniform_grid(7)
    assert times == sorted(times) and len(times) > 1
    assert runner.reads == 1, "nothing is read on the way"


def guided_growth(rate: float = 1.0) -> FunctionRunner:
    """dx/dt = w x, with the weight of each image that the runner has at the time."""
    runner = FunctionRunner(lambda x, t: rate * runner.fetch("guidance")[:, None] * x)
    runner.guide(np.full(2, np.nan))
    return runner


IN_PARTS = (Guidance(2.0, interval=(0.25, 0.75)), Guidance(1.0, interval=(0.5, 1.0)))


def test_fixed_steps_are_guided_if_they_start_in_the_interval() -> None:
    """Eight Euler steps, of which images have four each; the growth of a step is 1 + w h."""
    found = integrate_batch(guided_growth(), START, integration_plan("euler", 8), guidance=IN_PARTS)
    np.testing.assert_allclose(found.x, START * np.array([[1.25**4], [1.125**4]]), rtol=1e-6)
    beside = (Guidance(2.0, interval=(0.26, 0.74)), Guidance(1.0, interval=(0.45, 0.9)))
    found = integrate_batch(guided_growth(), START, integration_plan("euler", 8), guidance=beside)
    np.testing.assert_allclose(
        found.x, START * np.array([[1.25**3], [1.125**4]]), rtol=1e-6
    )  # 3, 4, 5; 4 to 7 of 0 to 7


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_every_stage_of_a_step_has_the_same_guidance(solver: str) -> None:
    found = integrate_batch(guided_growth(), START, integration_plan(solver, 64), guidance=IN_PARTS)
    tolerance = {"euler": 0.05, "rk4": 1e-5}.get(solver, 1e-3)
    np.testing.assert_allclose(found.x, START * np.exp([[1.0], [0.5]]), rtol=tolerance)


def test_adaptive_steps_end_where_guidance_changes() -> None:
    found = integrate_batch(guided_growth(), START, AdaptiveSteps(tolerance=1e-6), guidance=IN_PARTS)
    np.testing.assert_allclose(found.x, START * np.exp([[1.0], [0.5]]), rtol=1e-5)
    assert {0.25, 0.5, 0.75} < set(found.times) and list(found.times) == sorted(set(found.times))
    assert found.times[0] == 0 and found.times[-1] == 1 and found.passes > 6 * 4


def test_guidance_that_does_not_change_is_left_to_the_runner() -> None:
    runner = guided_growth()
    runner.guide(np.ones(2))
    whole = (Guidance(7.0), Guidance(0.0, interval=(0.2, 0.4)))
    found = integrate_batch(runner, START, integration_plan("euler", 8), guidance=whole)
    np.testing.assert_allclose(found.x, START * 1.125**8, rtol=1e-6)


def test_a_divergence_under_guidance_names_its_step() -> None:
    late = (Guidance(1.0, interval=(0.5, 1.0)),) * 2
    with pytest.raises(IntegrationError, match="step 6 of 8"):
        integrate_batch(guided_growth(rate=1e6), START, integration_plan("euler", 8), guidance=late)


def test_adaptive_steps_end_where_the_closed_form_does() -> None:
    found = integrate_batch(FunctionRunner(swirl), START, AdaptiveSteps(tolerance=1e-5))
    np.testing.assert_allclose(found.x, turned(START, 2.0), atol=1e-4)
    assert found.x.dtype == np.float32 and found.passes > 6


def blow_up(x: NDArray, t: float) -> NDArray:
    """x' = x^2 from 3 has its pole at time 1/3."""
    with np.errstate(over="ignore"):
        return np.square(x)


def test_divergence_names_step_and_time() -> None:
    runner = FunctionRunner(blow_up)
    with pytest.raises(IntegrationError, match=r"diverged: x .* in step 14 of 40, at time 0\.35;"):
        integrate_batch(runner, START + 2, integration_plan("rk4", 40))
    first = FunctionRunner(lambda x, t: np.full_like(x, np.nan))
    with pytest.raises(
        IntegrationError, match=r"became NaN or infinite in step 1 of 40, at time 0\.025; take more steps"
    ):
        integrate_batch(first, START, integration_plan("euler", 40))
    # What went wrong does not stay: the runner starts anew.
    runner._velocity = swirl
    np.testing.assert_allclose(
        integrate_batch(runner, START, integration_plan("rk4", 20)).x, turned(START, 2), atol=1e-4
    )


def test_finite_but_far_beyond_data_is_divergence() -> None:
    with pytest.raises(IntegrationError, match=r"reached .*e\+06 in step 3 of 4, at time 0\.75"):
        integrate_batch(FunctionRunner(lambda x, t: np.full_like(x, 1.5e6)), START, integration_plan("euler", 4))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rk5", None, None), "'rk5' is not known"),
        (("heun", 0, None), "0 steps"),
        (("heun", 8, 1e-3), "takes steps, not a tolerance"),
        (("dopri5", 8, None), "chooses its own steps"),
        (("dopri5", None, 0.0), "between 0 and 1"),
        ((None, None, float("nan")), "between 0 and 1"),
    ],
)
def test_bad_requests(arguments: tuple[str | None, int | None, float | None], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        integration_plan(*arguments)


def test_defaults_fill_in() -> None:
    assert integration_plan(steps=3) == FixedSteps(solver="heun", times=uniform_grid(3))
    assert integration_plan("euler") == FixedSteps(solver="euler", times=uniform_grid(16))
    assert integration_plan("dopri5") == AdaptiveSteps(tolerance=1e-4)
    assert str(FixedSteps(solver="rk4", times=(0, 0.2, 1))) == "rk4, 2 steps, own grid"
