"""A trace: the tokens of a sample after every flow block."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trace:
    """A sample, block by block."""

    # [N, T, D] float32 after each flow block, by index and in block order; NaN and infinity are kept.
    tokens: dict[int, NDArray]


def finite(tokens: NDArray) -> NDArray:
    """The tokens with zeros instead of NaN and infinity, so that later blocks can still be compared."""
    return np.nan_to_num(tokens, nan=0.0, posinf=0.0, neginf=0.0)
