"""Bits per dimension of densities whose discrete probabilities are known."""

import math

import numpy as np
import pytest

from starflow.runtime.plain.bits_per_dim import bits_per_dim


@pytest.mark.parametrize(("levels", "span"), [(256, 2.0), (256, 1.0), (16, 2.0), (2, 5.0)])
@pytest.mark.parametrize("dimensions", [1, 3, 768])
def test_a_uniform_density_takes_log2_of_the_levels(levels: int, span: float, dimensions: int) -> None:
    log_density = np.array([-dimensions * math.log(span)] * 2)
    np.testing.assert_allclose(bits_per_dim(log_density, dimensions, levels=levels, span=span), [math.log2(levels)] * 2)


def test_eight_bit_data_in_minus_one_to_one_is_the_default() -> None:
    assert bits_per_dim(-12 * math.log(2.0), 12) == pytest.approx(8.0)


def test_a_density_that_knows_the_level_takes_no_bits() -> None:
    """All mass within one level: 256 levels over a length of 2 are 1/128 wide."""
    assert bits_per_dim(5 * math.log(128), 5) == pytest.approx(0.0, abs=1e-12)
    assert bits_per_dim(5 * math.log(64), 5) == pytest.approx(1.0), "two levels"
    assert bits_per_dim(5 * math.log(256), 5) == pytest.approx(-1.0), "a density is no probability"
