"""The marginal tilt, where it is known in closed form, and the kappa it chooses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from starflow.runtime.plain.errors import UsageError
from starflow.training.continuous.tilt import elbow_kappa, marginal_tilt, plot_tilt, tilt_curve
from starflow.training.points import POINT_SETS


def test_two_points_in_closed_form() -> None:
    """Noise at the origin, data at distance 0 or a: w is 1 or q = exp(-a / epsilon), each half of the time."""
    x0, x1 = torch.zeros(1000, 1), torch.zeros(1000, 1)
    x1[::2] = 2.0
    tilt = marginal_tilt(x0, x1, epsilon=1.5)
    q = math.exp(-2 / 1.5)
    assert tilt.data == pytest.approx(((1 - q) / (1 + q)) ** 2, rel=2e-3)
    assert tilt.noise == 0


def test_no_tilt_where_symmetry_forbids_it() -> None:
    """Isotropic noise against data on a sphere: every data point has the same weight, noise has not."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(2000, 3, generator=generator)
    x1 = torch.nn.functional.normalize(torch.randn(2000, 3, generator=generator))
    tilt = marginal_tilt(x0, x1, epsilon=0.7)
    assert tilt.data < 2e-3
    assert tilt.noise > 0.1


def test_estimate_does_not_grow_with_few_partners() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(4000, 5, generator=generator), torch.randn(4000, 5, generator=generator)
    many = marginal_tilt(x0, x1, 0.5)
    few = [marginal_tilt(x0[i : i + 50], x1[i : i + 50], 0.5) for i in range(0, 4000, 50)]
    assert sum(tilt.data for tilt in few) / len(few) == pytest.approx(many.data, rel=0.15)
    assert sum(tilt.noise for tilt in few) / len(few) == pytest.approx(many.noise, rel=0.15)


def test_kappa_is_the_knee_of_the_curve(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(500, 2, generator=generator), 3 * torch.randn(500, 2, generator=generator)
    curve = tilt_curve(x0, x1)
    worst = np.interp(math.log(curve.kappa), np.log(curve.kappas), [tilt.worst for tilt in curve.tilts])
    assert worst < 0.3
    assert max(tilt.worst for tilt in curve.tilts if not tilt.collapsed) > 5 * worst
    doubled = tilt_curve(x0.repeat(1, 2), x1.repeat(1, 2))  # twice the dimensions, the same geometry
    assert doubled.kappa == pytest.approx(curve.kappa, rel=0.05)
    plot_tilt(curve, tmp_path / "tilt.png")
    with Image.open(tmp_path / "tilt.png") as image:
        assert image.width > 300


@pytest.mark.parametrize("grid", [(0.02, 30, 40), (0.1, 200, 60), (0.3, 25, 120)])
def test_the_elbow_does_not_move_with_the_grid(grid: tuple[float, float, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = (POINT_SETS[name](1000, generator) for name in ("eight_gaussians", "moons"))
    kappa = tilt_curve(x0, x1).kappa
    assert 1.2 < kappa < 2.2
    assert tilt_curve(x0, x1, tuple(np.geomspace(*grid))).kappa == pytest.approx(kappa, rel=0.12)


def test_collapsed_estimates_are_ignored_and_never_chosen() -> None:
    """At a tiny kappa one partner has all the weight: variance between and within samples cancel, and the tilt seems 0."""
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(200, 64, generator=generator), torch.randn(200, 64, generator=generator)
    tiny = marginal_tilt(x0, x1, 1e-3)
    assert tiny.collapsed and tiny.partners < 2
    assert not marginal_tilt(x0, x1, 8.0).collapsed
    with pytest.raises(
        UsageError, match=r"fewer than 10 of 200 pairs have all the weight; take larger kappas"
    ) as caught:
        tilt_curve(x0, x1, (1e-4, 2e-4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kappas", "expected"),
    [
        ((5.0, 50.0), "take smaller kappas"),
        ((0.2, 0.3, 0.4), "take larger kappas"),
        ((0.5, 1, 2), "expected kappas up to"),
    ],
)
def test_a_grid_without_the_elbow_is_refused(kappas: tuple[float, ...], expected: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = (POINT_SETS[name](1000, generator) for name in ("eight_gaussians", "moons"))
    with pytest.raises(UsageError, match=expected):
        tilt_curve(x0, x1, kappas)


def test_elbow_of_a_bent_line() -> None:
    kappas = [10 ** (k / 10) for k in range(31)]
    lost = [max(0.8 - 0.08 * k, 0.001) for k in range(31)]  # falls to nothing at k = 10, then flat
    assert elbow_kappa(kappas, [value / (1 - value) for value in lost]) == pytest.approx(10, rel=0.02)


def test_epsilon_must_be_positive() -> None:
    with pytest.raises(UsageError, match="expected a number above 0"):
        marginal_tilt(torch.zeros(2, 1), torch.ones(2, 1), 0.0)
