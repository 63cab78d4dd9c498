"""Likelihoods in the unit papers report."""

import math
from typing import Any, TypeVar

Values = TypeVar("Values", bound=Any)

LEVEL = 1 / 127.5  # width of one grey level in [-1, 1]


def bits_per_dim(log_likelihood: Values, dimensions: int, *, levels: int = 256, span: float = 2.0) -> Values:
    """Bits per dimension of 8-bit data under uniform dequantisation (Theis et al., 2016, eq. 1).

    An integer value v in 0 .. levels - 1 is dequantised to v + u, u ~ U[0, 1), and mapped to an interval of length
    `span`: one level is span / levels wide there. The discrete log2-probability is bounded from below by the density's
    expectation, so

        bits/dim = -(log p(x) / dimensions + log(span / levels)) / log 2.

    Args:
        log_likelihood: [B] nats, the density of the mapped data; an array or a tensor.
        dimensions: Number of values per sample.
        levels: Quantisation levels.
        span: Length of the interval the levels are mapped to (2 for [-1, 1]).

    Returns:
        [B] bits per dimension.
    """
    return -(log_likelihood / dimensions + math.log(span / levels)) / math.log(2)
