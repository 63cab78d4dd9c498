"""Detects an integration that diverges."""

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.plain.errors import IntegrationError

LARGEST = 1e6  # noise and data are of order 1; a state a million times larger will not return


def has_diverged(x: NDArray) -> bool:
    """Whether a value is NaN, infinite, or far larger than any data."""
    return not bool((np.abs(x) <= LARGEST).all())  # a comparison with NaN is false


def check_state(x: NDArray, step: int, steps: int | None, time: float) -> None:
    """See that an integration has not diverged.

    Args:
        step: Number of the step that led to it, counted from 1.
        steps: Total number of steps, if known.

    Raises:
        IntegrationError: the integration diverged.
    """
    if not has_diverged(x):
        return
    finite = np.isfinite(x).all()
    what = f"reached {np.abs(x).max():.3g}" if finite else "became NaN or infinite"
    of = "" if steps is None else f" of {steps}"
    raise IntegrationError(
        f"the integration diverged: x {what} in step {step}{of}, at time {time:.4g}; "
        "take more steps, another solver, or a smaller guidance weight"
    )
