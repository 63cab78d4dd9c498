"""The times between which a solver steps."""

import math
from collections.abc import Sequence

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.limits import MOST_PASSES


def uniform_grid(steps: int) -> tuple[float, ...]:
    """Equal steps from 0 to 1; UsageError if there is not one, or more than rounding leaves any use for."""
    if not 1 <= steps <= MOST_PASSES:
        raise UsageError(f"{steps} steps from noise to data; give at least 1, and at most {MOST_PASSES:,}")
    return tuple(index / steps for index in range(steps + 1))


def grid_fault(times: Sequence[float]) -> str | None:
    """Why these times are not a grid, or None if they are."""
    if len(times) < 2:
        return f"a time grid of {len(times)} times holds no step; give at least 2"
    for index, time in enumerate(times):
        if not math.isfinite(time):
            return f"time {index} of the grid is {time}"
        if index and time <= times[index - 1]:
            return f"the time grid must increase: time {index} is {time:g}, after {times[index - 1]:g}"
    return None
