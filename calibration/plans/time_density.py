"""Grids whose steps all have about the same error."""

import numpy as np
from numpy.typing import NDArray

FLOOR = 0.05  # share of the mean that is added: where paths are straight, steps still end somewhere


def acceleration(states: NDArray) -> NDArray[np.float64]:
    """How much paths bend: root mean square of d2x/dt2 over all samples, between equal steps.

    Args:
        states: [N, M + 1, D], states at times 0, 1/M .. 1.

    Returns:
        [M - 1], at times 1/M .. 1 - 1/M.
    """
    steps = states.shape[1] - 1
    bend = np.diff(states.astype(np.float64), n=2, axis=1) * steps**2
    size: NDArray[np.float64] = np.sqrt(np.square(bend).mean(axis=(0, 2)))
    return size


def equidistributed(bend: NDArray, order: int, steps: int) -> tuple[float, ...]:
    """Times between which a method of some order has about equal errors.

    The error of a step of size h is about c h^(p + 1), so h goes as c^(-1 / (p + 1)); the acceleration stands for c.

    Args:
        bend: See `acceleration`; at equal times.
        order: p.
    """
    density = (bend + FLOOR * bend.mean() + np.finfo(float).tiny) ** (1 / (order + 1))
    edges = np.linspace(0, 1, len(density) + 1)
    share = np.concatenate([[0], np.cumsum(density) / density.sum()])
    inner = np.interp(np.arange(1, steps) / steps, share, edges)
    return (0.0, *(float(f"{time:.6g}") for time in inner), 1.0)
