"""What one way of running a bundle makes of given noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trace:
    """A whole sample, block by block.

    Attributes:
        tokens: [N, T, D] float32 after each flow block by its index, in the block's own order; what is not finite
            is kept.
    """

    tokens: dict[int, NDArray]


def finite(tokens: NDArray) -> NDArray:
    """The tokens with zeros for what is not finite, so that what comes after can still be judged."""
    return np.nan_to_num(tokens, nan=0.0, posinf=0.0, neginf=0.0)
