"""Which weights guidance takes."""

import math

import pytest

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance


@pytest.mark.parametrize("weight", [0, 0.0, 0.5, 1, 3.6, 1e9])
def test_weights_from_none_to_any_number(weight: float) -> None:
    assert Guidance(weight).weight == weight


@pytest.mark.parametrize("weight", [-1e-9, -1.0, math.inf, -math.inf, math.nan])
def test_what_is_no_weight(weight: float) -> None:
    with pytest.raises(UsageError, match=r"guidance .* is not a weight; give a number >= 0"):
        Guidance(weight)


@pytest.mark.parametrize(
    "interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0), (0.0, math.nan)]
)
def test_what_is_no_interval(interval: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=r"guidance interval .*: give two times from 0 \(noise\) to 1 \(data\)"):
        Guidance(1.0, interval=interval)


def test_unless_told_otherwise_every_output_of_every_block_is_guided_by_the_same_weight() -> None:
    plain = Guidance()
    assert (plain.weight, plain.top_only, plain.scale, plain.shift, plain.annealed) == (0.0, False, True, True, False)
    with pytest.raises(AttributeError):
        plain.weight = 1.0  # type: ignore[misc]
