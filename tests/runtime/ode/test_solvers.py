"""Solvers against closed forms, their textbook order, and SciPy."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import RK45, solve_ivp

from starflow.runtime.ode.divergence import LARGEST, check_state, has_diverged
from starflow.runtime.ode.dormand_prince import MOST_PASSES, integrate_adaptively
from starflow.runtime.ode.fixed_step import Velocity, pass_table, walk
from starflow.runtime.ode.tableau import DORMAND_PRINCE, DORMAND_PRINCE_ERROR, FIXED_STEP, fixed_step_tableau
from starflow.runtime.ode.time_grid import grid_fault, uniform_grid
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
    """One image is one system of equations: the same steps, evaluations and end point.

    A step's size follows from its error over the tolerance, and the error is a difference of numbers near one: rounding, which differs
    between processors, moves the times by about a unit in the last place over the tolerance.
    """
    x, rounding = START[:1], float(np.finfo(np.float64).eps) / tolerance
    found = integrate_adaptively(velocity, x, tolerance)
    expected, evaluations, times = scipy_end(x, tolerance)
    np.testing.assert_allclose(found.times, times, rtol=4 * rounding)
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
    with pytest.raises(IntegrationError, match=r"tolerance of 1e-09 is out of reach"):
        integrate_adaptively(lambda x, t: velocity(x, t).astype(np.float16), START[:1], 1e-9)


def test_the_coefficients_of_dormand_and_prince_are_scipys() -> None:
    """SciPy keeps the last stage, at which the next step begins, apart."""
    rows = [list(row) + [0] * (5 - len(row)) for row in DORMAND_PRINCE.matrix[:-1]]
    np.testing.assert_array_equal(rows, RK45.A)
    np.testing.assert_array_equal(DORMAND_PRINCE.matrix[-1], RK45.B)
    np.testing.assert_array_equal(DORMAND_PRINCE.weights, [*RK45.B, 0])
    np.testing.assert_array_equal(DORMAND_PRINCE.nodes, [*RK45.C, 1])
    # The sign of an error does not matter.
    np.testing.assert_allclose(np.abs(DORMAND_PRINCE_ERROR), np.abs(RK45.E), rtol=1e-15)
    np.testing.assert_allclose(sum(DORMAND_PRINCE_ERROR), 0, atol=1e-15)
    assert (DORMAND_PRINCE.order, DORMAND_PRINCE.stages) == (5, 7)


@pytest.mark.parametrize(
    ("solver", "rows"),
    [
        # time, ahead, share, last; a step from 1 to 3 has a size of 2.
        ("euler", [(1, 0, 2, 1)]),
        ("midpoint", [(1, 1, 0, 0), (2, 0, 2, 1)]),
        ("heun", [(1, 2, 1, 0), (3, 0, 1, 1)]),
        ("rk4", [(1, 1, 1 / 3, 0), (2, 1, 2 / 3, 0), (2, 2, 2 / 3, 0), (3, 0, 1 / 3, 1)]),
    ],
)
def test_the_passes_of_a_step(solver: str, rows: list[tuple[float, ...]]) -> None:
    np.testing.assert_allclose(pass_table(FIXED_STEP[solver], (1.0, 3.0)), rows)
    twice = pass_table(FIXED_STEP[solver], (1.0, 3.0, 5.0))
    np.testing.assert_allclose(twice[len(rows) :] - twice[: len(rows)], [(2, 0, 0, 0)] * len(rows), atol=1e-12)
    orders = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
    assert {name: tableau.order for name, tableau in FIXED_STEP.items()} == orders
    assert FIXED_STEP[solver].stages == len(rows)


def test_the_state_after_every_step_is_given_out() -> None:
    states = list(walk(lambda x, t: np.full_like(x, t), np.zeros(1), pass_table(FIXED_STEP["euler"], (0.0, 1.0, 3.0))))
    assert [state.tolist() for state in states] == [[0.0], [2.0]]
    single = list(walk(lambda x, t: x, np.ones(1, np.float32), pass_table(FIXED_STEP["rk4"], (0.0, 1.0))))
    assert single[0].dtype == np.float32


def test_grids() -> None:
    assert uniform_grid(1) == (0.0, 1.0) and uniform_grid(4) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert grid_fault((0.0, 1.0)) is None and grid_fault((-3.0, 0.0, 0.1)) is None
    assert grid_fault(()) == "a time grid of 0 times holds no step; give at least 2"
    assert grid_fault((np.inf, 1.0)) == "time 0 of the grid is inf"
    assert grid_fault((0.0, 1.0, 0.5)) == "the time grid must increase: time 2 is 0.5, after 1"


def test_what_counts_as_divergence() -> None:
    assert LARGEST == 1e6
    for value, diverged in ((0.0, False), (1e6, False), (-1e6, False), (1.01e6, True), (-1e7, True), (np.nan, True)):
        assert has_diverged(np.array([1.0, value])) is diverged
    check_state(np.ones(2), 1, 2, 0.5)
    large, broken = np.array([1.0, -2e6]), np.array([np.inf, 1.0])
    with pytest.raises(IntegrationError, match=r"x reached 2e\+06 in step 3 of 16, at time 0\.25; take more steps"):
        check_state(large, 3, 16, 0.25)
    with pytest.raises(IntegrationError, match=r"x became NaN or infinite in step 3, at time 0\.25;"):
        check_state(broken, 3, None, 0.25)


@pytest.mark.parametrize("start", [0.0, 1e-7, 5.0])
@pytest.mark.parametrize("speed", [0.0, 1e-9, 3.0])
def test_the_first_step_is_scipys(start: float, speed: float) -> None:
    """From zero, at rest, and with a velocity that does not change: every case of the first guess."""
    x = np.array([[start, start]])
    found = integrate_adaptively(lambda x, t: np.full_like(x, speed), x, 1e-4, 0.0, 2.0)
    expected = solve_ivp(lambda t, y: np.full_like(y, speed), (0, 2), x.ravel(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.times, expected.t, rtol=1e-12)
    np.testing.assert_allclose(found.x.ravel(), expected.y[:, -1], rtol=1e-12)
    assert (found.passes, found.rejected) == (expected.nfev, 0)


@pytest.mark.parametrize("rate", [30.0, 200.0])
def test_steps_that_are_rejected_are_scipys_too(rate: float) -> None:
    """A slope that jumps: after a rejection the next step is not longer than the one that failed."""

    def jumping(x: NDArray, t: float) -> NDArray:
        return np.tanh(rate * (t - 0.37)) * x + np.sin(rate * t)

    x = np.array([[1.0, -2.0, 0.5]])
    found = integrate_adaptively(jumping, x, 1e-5, -1.0, 1.5)
    expected = solve_ivp(lambda t, y: jumping(y, t), (-1, 1.5), x.ravel(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.times, expected.t, rtol=1e-8)
    np.testing.assert_allclose(found.x.ravel(), expected.y[:, -1], rtol=1e-8)
    assert found.passes == expected.nfev and found.rejected > 0
    assert found.passes == 2 + 6 * (len(found.times) - 1 + found.rejected)


def test_the_image_with_the_largest_error_rules() -> None:
    """A quiet image beside a lively one takes the lively one's steps."""
    lively = integrate_adaptively(velocity, START[1:], 1e-6)
    both = integrate_adaptively(
        lambda x, t: np.concatenate([velocity(x[:1], t), 0 * x[1:]]), np.concatenate([START[1:], 0 * START[:1]]), 1e-6
    )
    np.testing.assert_allclose(both.times, lively.times, rtol=1e-12)
    np.testing.assert_array_equal(both.x[1], [0, 0, 0])


def test_effort_is_bounded() -> None:
    seen = 0

    def noisy(x: NDArray, t: float) -> NDArray:
        nonlocal seen
        seen += 1
        return np.cos(1e5 * t) * np.ones_like(x)

    with pytest.raises(
        IntegrationError, match=r"a tolerance of 1e-08 is out of reach: after 20\d\d passes the step is"
    ):
        integrate_adaptively(noisy, np.ones((1, 1)), 1e-8)
    assert MOST_PASSES == 2000 <= seen < MOST_PASSES + 6
