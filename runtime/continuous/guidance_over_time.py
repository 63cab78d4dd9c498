"""Guidance of the images of a batch as a function of time: which weights apply, and when they change."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.plain.guidance import Guidance


def weights_at(guidance: Sequence[Guidance], time: float) -> NDArray[np.float32]:
    """The weight of each image in a step that starts at `time`, [B] float32."""
    return np.array([each.weight_at_time(time) for each in guidance], np.float32)


def changes(guidance: Sequence[Guidance]) -> tuple[float, ...]:
    """The times between 0 and 1 at which a weight changes, in order."""
    times = {time for each in guidance if each.weight for time in each.interval}
    return tuple(sorted(times - {0.0, 1.0}))
