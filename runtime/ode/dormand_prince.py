"""The method of Dormand and Prince, whose steps are as long as a tolerance allows.

Standard step size control (Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, section II.4): after an error
estimate e, relative to the tolerance, the next step is 0.9 e^(-1/5) times as long, within bounds. State and sums are float64,
whatever the type of the velocity.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.ode.divergence import check_state
from starflow.runtime.ode.fixed_step import Velocity
from starflow.runtime.ode.tableau import DORMAND_PRINCE, DORMAND_PRINCE_ERROR
from starflow.runtime.plain.errors import IntegrationError

SAFETY, SHORTEST, LONGEST = 0.9, 0.2, 10.0
MOST_PASSES = 2_000  # the number of 500 steps of the classical Runge-Kutta method


@dataclass(frozen=True)
class AdaptiveResult:
    """The result of an adaptive integration."""

    x: NDArray[np.float64]  # the final state, with the shape of the initial one
    times: tuple[float, ...]  # the time grid of accepted steps
    rejected: int  # number of steps whose error was too large
    passes: int  # number of evaluations of the velocity


def integrate_adaptively(
    velocity: Velocity, x: NDArray, tolerance: float, start: float = 0.0, end: float = 1.0
) -> AdaptiveResult:
    """Integrate from `start` to `end`.

    A step is accepted if the root mean square of error / (tolerance (1 + |x|)) is below 1 for every image. So each image is at
    least as accurate as it would be alone, and copies of an image change nothing.

    Args:
        velocity: v(x, t), with the shape of x.
        x: [B, ...], one row for each image.
        tolerance: Error allowed in a step, absolute and relative.
        start, end: Times, start < end.

    Raises:
        IntegrationError: the integration diverged, or the tolerance is out of reach.
    """
    return _Integration(velocity, x.astype(np.float64), tolerance, start, end).run()


class _Integration:
    def __init__(self, velocity: Velocity, x: NDArray[np.float64], tolerance: float, start: float, end: float) -> None:
        self._velocity, self.tolerance, self.end = velocity, tolerance, end
        self.x, self.times, self.rejected, self.passes = x, [start], 0, 0

    def run(self) -> AdaptiveResult:
        t = self.times[0]
        slope = self._evaluate(self.x, t)
        h = self._first_step(slope, t)
        longest = LONGEST
        while t < self.end:
            h = min(h, self.end - t)
            self._check_effort(h, t)
            x, slopes = self._step(slope, t, h)
            check_state(x, len(self.times), None, t + h)
            scale = self.tolerance * (1 + np.maximum(np.abs(self.x), np.abs(x)))
            error = _norm(h * _combine(DORMAND_PRINCE_ERROR, slopes) / scale)
            if error < 1:
                # The last step ends exactly at `end`, without rounding error.
                t = self.end if h == self.end - t else t + h
                self.x, slope = x, slopes[-1]
                self.times.append(t)
                factor = LONGEST if error == 0 else min(longest, SAFETY * error**-0.2)
                longest = LONGEST
            else:
                self.rejected += 1
                factor = max(SHORTEST, SAFETY * error**-0.2)
                longest = 1.0  # the next step must not be longer than the one that failed
            h *= max(SHORTEST, factor)
        return AdaptiveResult(self.x, tuple(self.times), self.rejected, self.passes)

    def _step(self, slope: NDArray, t: float, h: float) -> tuple[NDArray, list[NDArray]]:
        """The next x, and the slopes of all stages; the last slope is the one at the next x."""
        slopes = [slope]
        x = self.x
        for row, node in zip(DORMAND_PRINCE.matrix[1:], DORMAND_PRINCE.nodes[1:], strict=True):
            x = self.x + h * _combine(row, slopes)
            slopes.append(self._evaluate(x, t + node * h))
        return x, slopes

    def _first_step(self, slope: NDArray, t: float) -> float:
        """The first step size (section II.4, "starting step size")."""
        span = self.end - t
        scale = self.tolerance * (1 + np.abs(self.x))
        size, speed = _norm(self.x / scale), _norm(slope / scale)
        h = min(span, 1e-6 if size < 1e-5 or speed < 1e-5 else 0.01 * size / speed)
        ahead = self._evaluate(self.x + h * slope, t + h)
        curvature = _norm((ahead - slope) / scale) / h
        largest = max(speed, curvature)
        second = max(1e-6, h * 1e-3) if largest <= 1e-15 else (0.01 / largest) ** 0.2
        return float(min(100 * h, second, span))

    def _evaluate(self, x: NDArray, t: float) -> NDArray:
        self.passes += 1
        v = self._velocity(x, t)
        if not np.isfinite(v).all():
            check_state(v, len(self.times), None, t)
        return v

    def _check_effort(self, h: float, t: float) -> None:
        if h > 10 * np.spacing(max(abs(t), abs(self.end))) and self.passes < MOST_PASSES:
            return
        raise IntegrationError(
            f"a tolerance of {self.tolerance:g} is out of reach: after {self.passes} passes the step is {h:.2g} at time {t:.4g}; "
            "float32 velocities allow about 1e-6, fp16 ones about 1e-3; a large guidance weight needs small steps"
        )


def _combine(weights: tuple[float, ...], slopes: list[NDArray]) -> NDArray:
    total = np.zeros_like(slopes[0], np.float64)
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total += weight * slope
    return total


def _norm(x: NDArray) -> float:
    """The root mean square of the image where it is largest."""
    with np.errstate(over="ignore"):  # then it is infinite, and so is what is too fast for any step
        return float(np.sqrt(np.square(x).reshape(len(x), -1).mean(axis=1)).max())
