"""The density of the noise."""

import math

from torch import Tensor


def gaussian_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I) summed over all but the first axis: [B, ...] -> [B], nats."""
    return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
