"""Grids whose steps make equal errors, on paths whose second derivative is known."""

import numpy as np
import pytest

from starflow.calibration.plans.time_density import FLOOR, acceleration, equidistributed
from starflow.runtime.ode.fixed_step import pass_table, walk
from starflow.runtime.ode.tableau import FIXED_STEP


def test_acceleration_of_parabolas() -> None:
    """x = a t² / 2 has x'' = a: the root mean square over samples and channels, at every inner time."""
    times = np.linspace(0, 1, 9)
    rates = np.array([[3.0, -4.0], [0.0, 1.0]])
    states = rates[:, None, :] * times[None, :, None] ** 2 / 2
    np.testing.assert_allclose(acceleration(states), np.full(7, np.sqrt(np.mean(rates**2))))


def test_where_paths_bend_evenly_steps_are_equal() -> None:
    assert equidistributed(np.full(7, 2.0), 1, 4) == pytest.approx((0, 0.25, 0.5, 0.75, 1))
    assert equidistributed(np.zeros(7), 4, 2) == pytest.approx((0, 0.5, 1))
    assert equidistributed(np.ones(3), 2, 1) == (0.0, 1.0)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_steps_go_as_the_bend_to_minus_one_over_order_plus_one(order: int) -> None:
    """Two halves, the first one bending 16 times as much: a closed form."""
    bend = np.array([16.0, 16.0, 1.0, 1.0])
    floored = bend + FLOOR * 8.5
    first, second = floored[0] ** (1 / (order + 1)), floored[-1] ** (1 / (order + 1))
    steps = 10
    times = equidistributed(bend, order, steps)
    share = first / (first + second)  # of the steps, that lie in the first half
    expected = [
        t / steps / share / 2 if t / steps <= share else 0.5 + (t / steps - share) / (1 - share) / 2 for t in range(11)
    ]
    assert times == pytest.approx(expected, abs=1e-5)


def test_equidistributed_steps_are_short_where_paths_bend() -> None:
    """x' = f(t) that turns quickly around t = 0.2: steps there, and a smaller error than with equal steps."""

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        return np.full_like(x, np.tanh((t - 0.2) * 40))

    fine = np.linspace(0, 1, 65)
    start = np.zeros((1, 1))
    states = [start, *walk(velocity, start, pass_table(FIXED_STEP["rk4"], fine.tolist()))]
    times = equidistributed(acceleration(np.stack(states, axis=1)), order=1, steps=12)
    assert len(times) == 13 and times[0] == 0 and times[-1] == 1 and all(np.diff(times) > 0)
    assert 0.1 < times[int(np.argmin(np.diff(times)))] < 0.3
    exact = (np.log(np.cosh(40 * 0.8)) - np.log(np.cosh(40 * 0.2))) / 40
    errors = []
    for grid in (times, np.linspace(0, 1, 13).tolist()):
        *_, end = walk(velocity, start, pass_table(FIXED_STEP["euler"], grid))
        errors.append(abs(float(end[0, 0]) - exact))
    assert errors[0] < errors[1] / 2
