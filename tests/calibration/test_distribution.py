"""The figures of a distribution, against normal distributions whose figures are known, and against what must be told apart."""

import numpy as np
import pytest
from numpy.typing import NDArray

from starflow.calibration.distribution import Distribution, coverage, within

GENERATOR = np.random.default_rng(0)
COUNT, SIZE = 3000, 6


def normal(scale: float = 1.0, shift: float = 0.0) -> NDArray[np.float32]:
    """[N, 1, 1, 6] numbers."""
    return (scale * GENERATOR.standard_normal((COUNT, 1, 1, SIZE)) + shift).astype(np.float32)


@pytest.fixture(scope="module")
def exact() -> Distribution:
    return Distribution(normal(), np.arange(COUNT) % 3, normal())


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.7), (1.5, 0.3)])
def test_the_distance_and_diversity_of_normal_distributions(exact: Distribution, scale: float, shift: float) -> None:
    data = normal(scale, shift)
    assert exact.frechet(data) == pytest.approx(SIZE * (shift**2 + (scale - 1) ** 2), abs=0.25)  # three standard errors
    assert exact.diversity(data) == pytest.approx(scale, rel=0.05)


def test_one_picture_for_each_condition_is_precise_and_recalls_nothing(exact: Distribution) -> None:
    collapsed = np.repeat(normal()[:3] * 0.1, COUNT // 3, axis=0).reshape(3, -1, 1, 1, SIZE)
    data = collapsed.transpose(1, 0, 2, 3, 4).reshape(COUNT, 1, 1, SIZE)
    precision, recall = exact.precision_and_recall(data)
    assert precision > 0.99 and recall < 0.05 and exact.diversity(data) < 1e-3
    spread = exact.precision_and_recall(normal())
    assert min(spread) > 0.5
    assert exact.precision_and_recall(normal(shift=9.0)) == (0.0, 0.0)


def test_a_third_of_the_pictures_at_one_condition_does_not_count_as_variety() -> None:
    centres = np.array([[0.0], [10.0], [20.0]])
    features = centres[np.arange(300) % 3] + GENERATOR.standard_normal((300, 1))
    assert within(features, np.arange(300) % 3) == pytest.approx(1.0, rel=0.15)
    assert within(features, np.zeros(300)) > 8


def test_coverage_is_of_balls_around_the_centres() -> None:
    line = np.arange(10.0)[:, None]  # the third nearest other centre is 2 away, or 3 at the ends
    points = np.array([[-3.0], [-3.1], [4.5], [11.9], [12.1]])
    assert coverage(line, points) == pytest.approx(3 / 5)
