"""Solvers against closed forms, their textbook order, and SciPy."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from starflow.runtime.ode.dormand_prince import integrate_adaptively
from starflow.runtime.ode.fixed_step import Velocity, pass_table, walk
from starflow.runtime.ode.tableau import DORMAND_PRINCE, FIXED_STEP, fixed_step_tableau
from starflow.runtime.ode.time_grid import uniform_grid
from starflow.runtime.plain.errors import IntegrationError, UsageError

START = np.array([[1.0, 0.5, 0.7], [0.3, 2.0, 0.1]])


def velocity(x: NDArray, t: float) -> NDArray:
    """A system whose solution is known, `exact`: decay at a growing rate, a driven oscillation, logistic growth."""
    return np.stack([-2 * t * x[:, 0], np.cos(3 * t) * x[:, 1], x[:, 2] * (1 - x[:, 2])], axis=1)


def exact(x: NDArray, t: float) -> NDArray:
    logistic = x[:, 2] * np.exp(t) / (1 - x[:, 2] + x[:, 2] * np.exp(t))
    return np.stack([x[:, 0] * np.exp(-(t**2)), x[:, 1] * np.exp(np.sin(3 * t) / 3), logistic], axis=1)


def integrate(velocity: Velocity, x: NDArray, table: NDArray) -> NDArray:
    *_, end = walk(velocity, x, table)
    return end


def scipy_end(x: NDArray, tolerance: float, method: str = "RK45") -> tuple[NDArray, int, NDArray]:
    solution = solve_ivp(
        lambda t, y: velocity(y.reshape(x.shape), t).ravel(),
        (0, 1),
        x.ravel(),
        method=method,
        rtol=tolerance,
        atol=tolerance,
    )
    return solution.y[:, -1].reshape(x.shape), solution.nfev, solution.t


@pytest.mark.parametrize(("name", "tableau"), [*FIXED_STEP.items(), ("dopri5", DORMAND_PRINCE)])
def test_tableaus_are_consistent(name: str, tableau: object) -> None:
    """Row sums are the nodes and the weights satisfy the conditions on sum b c^k; fixed steps look one stage back."""
    table = DORMAND_PRINCE if name == "dopri5" else fixed_step_tableau(name)
    for row, node in zip(table.matrix, table.nodes, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-14)
        if name != "dopri5":
            assert not any(row[:-1])
    for power in range(table.order):
        moment = sum(b * c**power for b, c in zip(table.weights, table.nodes, strict=True))
        assert moment == pytest.approx(1 / (power + 1))


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_observed_order(solver: str) -> None:
    tableau, expected = fixed_step_tableau(solver), exact(START, 1.0)
    errors = []
    for steps in (20, 40, 80) if tableau.order == 4 else (400, 800, 1600):
        found = integrate(velocity, START, pass_table(tableau, uniform_grid(steps)))
        errors.append(float(np.abs(found - expected).max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    print(solver, orders)
    assert np.abs(orders - tableau.order).max() < 0.15


@pytest.mark.parametrize("solver", FIXED_STEP)
def test_end_point_is_scipys(solver: str) -> None:
    expected = scipy_end(START, 1e-10, "DOP853")[0]
    tableau = fixed_step_tableau(solver)
    ends = [
        integrate(velocity, START, pass_table(tableau, uniform_grid(steps)))
        for steps in {1: (1000, 2000), 2: (600,), 4: (20,)}[tableau.order]
    ]
    # Euler's method would take 100,000 steps; its error is first order, so two runs tell where it is going.
    found = ends[0] if len(ends) == 1 else 2 * ends[1] - ends[0]
    assert np.abs(found - expected).max() < 1e-5


def test_a_given_grid_is_walked() -> None:
    """Any grid: a step of each size, against the steps written out by hand."""
    times = (0.0, 0.1, 0.15, 0.6, 1.0)
    seen: list[float] = []

    def noting(x: NDArray, t: float) -> NDArray:
        seen.append(t)
        return velocity(x, t)

    found = integrate(noting, START, pass_table(FIXED_STEP["heun"], times))
    x = START
    for start, end in pairwise(times):
        first = velocity(x, start)
        second = velocity(x + (end - start) * first, end)
        x = x + (end - start) / 2 * (first + second)
    np.testing.assert_allclose(found, x, atol=1e-14)
    np.testing.assert_allclose(seen, np.repeat(times, 2)[1:-1])


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_dormand_prince_takes_scipys_very_steps(tolerance: float) -> None:
    """One image is one system of equations: the same steps, evaluations and end point."""
    x = START[:1]
    found = integrate_adaptively(velocity, x, tolerance)
    expected, evaluations, times = scipy_end(x, tolerance)
    np.testing.assert_allclose(found.times, times, rtol=1e-10)
    np.testing.assert_allclose(found.x, expected, atol=1e-12)
    assert found.passes == evaluations
    assert np.abs(found.x - exact(x, 1.0)).max() < 20 * tolerance


def test_rejected_steps_are_counted() -> None:
    """A kick in the middle, which no step can see coming."""
    sharp = 40.0

    def kicked(x: NDArray, t: float) -> NDArray:
        return np.full_like(x, np.exp(-(((t - 0.7) * sharp) ** 2)) * sharp / np.sqrt(np.pi)) + x * 3

    result = integrate_adaptively(kicked, np.ones((1, 2)), 1e-6)
    assert result.rejected > 0
    assert result.passes == 2 + 6 * (len(result.times) - 1 + result.rejected)
    fine = integrate(kicked, np.ones((1, 2)), pass_table(FIXED_STEP["rk4"], uniform_grid(1000)))
    np.testing.assert_allclose(result.x, fine, rtol=1e-5)


def test_copies_of_an_image_change_nothing() -> None:
    alone = integrate_adaptively(velocity, START[:1], 1e-5)
    together = integrate_adaptively(velocity, np.repeat(START[:1], 5, axis=0), 1e-5)
    np.testing.assert_array_equal(together.x, np.repeat(alone.x, 5, axis=0))


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ((0.0,), "give at least 2"),
        ((0.0, 0.5, 0.5, 1.0), "time 2 is 0.5, after 0.5"),
        ((0.0, 0.5, 0.4, 1.0), "must increase"),
        ((0.0, float("nan"), 1.0), "time 1 of the grid is nan"),
    ],
)
def test_bad_grids(times: tuple[float, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        pass_table(FIXED_STEP["euler"], times)


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="'rk5' is not known; choose euler, midpoint, heun, rk4 or dopri5"):
        fixed_step_tableau("rk5")
    for steps in (0, -3):
        with pytest.raises(UsageError, match="at least 1"):
            uniform_grid(steps)


def explosion(x: NDArray, t: float) -> NDArray:
    """x' = x^2 from 2 has its pole at t = 1/2."""
    with np.errstate(over="ignore"):
        return np.square(x)


def test_divergence_names_the_time() -> None:
    with pytest.raises(IntegrationError, match=r"at time 0\.(49|5)"):
        integrate_adaptively(explosion, np.full((1, 2), 2.0), 1e-6)
    with pytest.raises(IntegrationError, match=r"NaN or infinite in step 1, at time 0;"):
        integrate_adaptively(lambda x, t: np.full_like(x, np.nan), np.ones((1, 2)), 1e-3)


def test_a_tolerance_below_the_velocitys_own_noise() -> None:
    """Velocities rounded to float16: no step is small enough."""
    with pytest.raises(IntegrationError, match=r"tolerance 1e-09 is out of reach"):
        integrate_adaptively(lambda x, t: velocity(x, t).astype(np.float16), START[:1], 1e-9)
