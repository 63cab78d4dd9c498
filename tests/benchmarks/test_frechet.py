"""The Fréchet distance against scipy's matrix square root and the closed form of Gaussians."""

import numpy as np
from scipy.linalg import sqrtm

from starflow.calibration.frechet import frechet_distance


def test_it_equals_the_formula_with_scipys_root() -> None:
    draw = np.random.default_rng(0)
    a = draw.standard_normal((200, 12)) @ draw.standard_normal((12, 12)) + 1
    b = draw.standard_normal((150, 12)) @ draw.standard_normal((12, 12))
    C_a, C_b = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(C_a + C_b - 2 * sqrtm(C_a @ C_b).real)
    assert np.isclose(frechet_distance(a, b), expected, rtol=1e-9)


def test_fewer_pictures_than_features() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.standard_normal((20, 50)), 2 * draw.standard_normal((30, 50))
    # scipy's root needs full rank: a ridge that vanishes
    C_a, C_b = np.cov(a.T) + 1e-9 * np.eye(50), np.cov(b.T) + 1e-9 * np.eye(50)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(C_a + C_b - 2 * sqrtm(C_a @ C_b).real)
    assert np.isclose(frechet_distance(a, b), expected, rtol=1e-4)
    assert 0 <= frechet_distance(a, a) < 1e-9


def test_it_is_that_of_the_gaussians_with_these_moments() -> None:
    draw = np.random.default_rng(2)
    a, b = draw.standard_normal((2, 60, 3))
    a, b = ((x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T for x in (a, b))
    assert np.isclose(frechet_distance(a, 3 * b + 2), 3 * (2**2 + (3 - 1) ** 2))
