"""When an integration has gone wrong."""

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.plain.errors import IntegrationError

LARGEST = 1e6  # noise and data are of the order of 1: what is a million times that will not come back


def has_diverged(x: NDArray) -> bool:
    """Whether a value is not finite, or far beyond anything that is data."""
    return not bool((np.abs(x) <= LARGEST).all())  # a comparison with NaN is false


def check_state(x: NDArray, step: int, steps: int | None, time: float) -> None:
    """See that an integration goes well.

    Args:
        x: The state.
        step: How many steps were done to come here.
        steps: Of how many, where that is known.
        time: The time reached.

    Raises:
        IntegrationError: it diverged.
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
