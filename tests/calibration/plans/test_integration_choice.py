"""The whole choice of an integration plan, on an equation whose solution is known and a clock that only passes move."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.calibration.cases import Cases
from starflow.calibration.plans import integration_plan as module
from starflow.calibration.plans.integration_plan import PATH_STEPS, IntegrationCalibration, calibrate_integration
from starflow.calibration.plans.integration_search import Trial
from starflow.calibration.plans.runs import PlanOptions, PlanRuns
from starflow.runtime.ode.dormand_prince import integrate_adaptively
from starflow.runtime.ode.fixed_step import pass_table, walk
from starflow.runtime.ode.tableau import FIXED_STEP
from starflow.runtime.plain.errors import IntegrationError, UsageError
from starflow.runtime.plans.integration_plan import AdaptiveSteps, FixedSteps, default_plan
from starflow.runtime.traces.case import Case

RATE = 5.0


def velocity(x: NDArray, t: float) -> NDArray:
    """x' = -(x - tanh 5 t): quick at first, then slow."""
    return -RATE * (x - np.tanh(RATE * t))


def end(plan: Any, noise: NDArray) -> tuple[NDArray, int]:
    if isinstance(plan, AdaptiveSteps):
        result = integrate_adaptively(velocity, noise, plan.tolerance)
        return result.x, result.passes
    *_, x = walk(velocity, noise.astype(np.float64), pass_table(FIXED_STEP[plan.solver], plan.times))
    return x, plan.passes


class World:
    """Takes the place of the sampler: `factor` on the error of samples with seed 1, `speed` of a pass by solver."""

    def __init__(self) -> None:
        self.now, self.factor, self.broken = 0.0, 1.0, set[str]()
        self.speed: dict[str, float] = {}
        self.counts: list[int | None] = []

    def sample(self, runs: PlanRuns, plan: Any, count: int | None = None, lap: Any = None) -> Any:
        if plan.solver in self.broken:
            raise IntegrationError("diverged")
        noise = runs.case.noise[:count]
        self.counts.append(count)
        x, passes = end(plan, noise)
        if runs.case.seed == 1 and plan.solver != "rk4":
            exact = end(FixedSteps(solver="rk4", times=tuple(np.linspace(0, 1, 257).tolist())), noise)[0]
            x = exact + self.factor * (x - exact)
        self.now += passes * self.speed.get(plan.solver, 1e-3)
        return x, {0: float(passes)}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()

    def path_states(bundle: Any, backend: Any, case: Case, plan: FixedSteps) -> NDArray:
        assert plan.steps == PATH_STEPS and plan.solver == "rk4"
        return np.stack(list(walk(velocity, case.noise, pass_table(FIXED_STEP["rk4"], plan.times))), axis=1)

    monkeypatch.setattr(PlanRuns, "sample", lambda *args, **more: found.sample(*args, **more))
    monkeypatch.setattr(module, "path_states", path_states)
    monkeypatch.setattr(time, "perf_counter", lambda: found.now)
    return found


def cases() -> Cases:
    noise = [np.random.default_rng(seed).standard_normal((4 + 2 * seed, 3)).astype(np.float32) for seed in (0, 1)]
    return Cases(*(Case(noise[seed], None, None, 2.0, seed) for seed in (0, 1)))


def calibrate(budget: float, told: list[tuple[Any, ...]] | None = None) -> IntegrationCalibration:
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(batch=2))
    variant: Any = SimpleNamespace(name="cpu-fp32")
    backend: Any = SimpleNamespace(name="onnxruntime cpu")

    def progress(done: int, total: int, doing: str | None = None) -> None:
        if told is not None:
            told.append((done, total, doing))

    return calibrate_integration(bundle, variant, backend, cases(), PlanOptions(budget, 3), progress=progress)


def relative(x: NDArray, exact: NDArray) -> float:
    return float(np.linalg.norm(x - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("budget", [0.1, 1e-2, 1e-3])
def test_the_fastest_plan_within_the_budget_on_other_samples(world: World, budget: float) -> None:
    told: list[tuple[Any, ...]] = []
    found = calibrate(budget, told)
    spec, noise = found.spec, cases().check.noise
    exact = end(FixedSteps(solver="rk4", times=tuple(np.linspace(0, 1, 1001).tolist())), noise)[0]
    x, passes = end(spec.plan, noise)
    assert relative(x, exact) == pytest.approx(spec.error, abs=0.1 * budget) and 0 < spec.error <= budget
    assert spec.passes == passes and spec.milliseconds == pytest.approx(
        1000 * min(world.speed.get(p.solver, 1e-3) * end(p, noise[:2])[1] for p, _ in found.timed[:-1])
    )
    # Nothing that was tried with fewer passes keeps the budget on the samples that plans are judged by.
    fewer = [t for t in found.trials if t.passes < spec.passes and t.error <= budget]
    assert all(relative(end(t.plan, noise)[0], exact) > 0.9 * budget for t in fewer)
    assert (spec.backend, spec.variant, spec.budget) == ("onnxruntime cpu", "cpu-fp32", budget)
    assert (spec.images, spec.guidance) == (6, 2.0)
    default, taken = end(default_plan(), noise)
    assert spec.default_error == pytest.approx(relative(default, exact), abs=0.1 * budget)
    assert spec.default_milliseconds == pytest.approx(taken)
    assert [values[:2] for values in told] == [(number, 8) for number in range(9)]
    assert [values[2] for values in told[:-1]] == [
        "reference", "rk4", "heun", "midpoint", "euler", "dopri5", "checking", "timing",
    ]  # fmt: skip


def test_both_kinds_of_grids_are_tried(world: World) -> None:
    trials = calibrate(1e-2).trials
    for trial in trials:
        if isinstance(trial.plan, FixedSteps):
            equal = np.allclose(np.diff(trial.plan.times), 1 / trial.plan.steps)
            assert equal == (trial.grid == "uniform" or trial.plan.steps == 1)
            if trial.grid == "equidistributed" and trial.plan.steps > 3:
                assert np.argmin(np.diff(trial.plan.times)) < trial.plan.steps / 2, "short where paths bend"


def test_three_plans_of_fewest_passes_and_the_default_are_timed_on_one_batch(world: World) -> None:
    found = calibrate(1e-2)
    plans = [plan for plan, _ in found.timed]
    assert len(plans) == 4 and plans[-1] == default_plan()
    passes = [end(plan, cases().check.noise)[1] for plan in plans[:-1]]
    assert passes == sorted(passes)
    assert world.counts.count(2) == 4 * (3 + 1), "three rounds after one that does not count"
    assert [round(milliseconds) for _, milliseconds in found.timed[:3]] == [
        end(p, cases().check.noise[:2])[1] for p in plans[:3]
    ]


def test_the_fastest_need_not_have_the_fewest_passes(world: World) -> None:
    quick = calibrate(1e-2).timed[1][0]
    world.speed = {solver: 1e-3 if solver == quick.solver else 1.0 for solver in (*FIXED_STEP, "dopri5")}
    found = calibrate(1e-2)
    assert found.spec.plan.solver == quick.solver
    assert found.spec.milliseconds == min(milliseconds for _, milliseconds in found.timed)


def test_plans_that_fail_on_other_samples_are_passed_over(world: World) -> None:
    world.factor = 100.0  # of everything but rk4
    found = calibrate(1e-2)
    assert found.spec.plan.solver == "rk4" or found.spec.error <= 1e-2
    assert any(trial.passes < found.spec.passes and trial.error <= 1e-2 for trial in found.trials)


def test_solvers_that_diverge_count_as_infinitely_far(world: World) -> None:
    world.broken = {"euler", "dopri5"}
    trials = calibrate(1e-2).trials
    for trial in trials:
        if trial.plan.solver in world.broken:
            assert trial.error == np.inf
            assert trial.passes == (trial.plan.passes if isinstance(trial.plan, FixedSteps) else np.inf)
    assert {trial.plan.solver for trial in trials} == {*FIXED_STEP, "dopri5"}


def test_budgets_that_cannot_be_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "search_plans", lambda *_: [Trial(default_plan(), "uniform", 32.0, 0.5)])
    with pytest.raises(
        UsageError, match=r"no plan of up to 512 steps keeps an error of 0\.01; the smallest was 5\.0e-01: .*--budget"
    ):
        calibrate(1e-2)
    euler = FixedSteps(solver="euler", times=(0.0, 1.0))
    monkeypatch.setattr(module, "search_plans", lambda *_: [Trial(euler, "uniform", 1.0, 0.001)])
    with pytest.raises(
        UsageError, match=r"no plan that keeps an error of 0\.01 does so on other samples; give more --images"
    ):
        calibrate(1e-2)
