"""Two-dimensional distributions to draw points from; scales are those of Tong et al. (TMLR 2024)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

EIGHT_RADIUS, EIGHT_STD = 5.0, 0.1**0.25


def normal(count: int, generator: torch.Generator) -> Tensor:
    """N(0, I), [count, 2] float32."""
    return torch.randn(count, 2, generator=generator)


def eight_centres() -> Tensor:
    """Means of `eight_gaussians`, [8, 2] float32."""
    angles = torch.arange(8) * (math.pi / 4)
    return EIGHT_RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def eight_gaussians(count: int, generator: torch.Generator) -> Tensor:
    """Eight Gaussians on a circle, equally likely, [count, 2] float32."""
    which = torch.randint(0, 8, (count,), generator=generator)
    return eight_centres()[which] + EIGHT_STD * torch.randn(count, 2, generator=generator)


def eight_gaussians_log_density(x: Tensor) -> Tensor:
    """log density of `eight_gaussians`: [B, 2] -> [B] nats."""
    squared = (x[:, None] - eight_centres().to(x)).square().sum(-1) / EIGHT_STD**2
    return torch.logsumexp(-0.5 * squared, dim=1) - math.log(8 * 2 * math.pi * EIGHT_STD**2)


def moons(count: int, generator: torch.Generator) -> Tensor:
    """Two interleaved half circles, [count, 2] float32."""
    upper = torch.rand(count, generator=generator) < 0.5
    angle = math.pi * torch.rand(count, generator=generator)
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], dim=1) + 0.2 * torch.randn(count, 2, generator=generator)
    return 3 * points - 1


def checkerboard(count: int, generator: torch.Generator) -> Tensor:
    """Every other square of a four by four board of side 8, [count, 2] float32."""
    x = torch.rand(count, generator=generator) * 8 - 4
    row = torch.rand(count, generator=generator) * 2 + 4 * torch.randint(0, 2, (count,), generator=generator)
    return torch.stack([x, row - 4 + 2 * (torch.floor(x / 2) % 2)], dim=1)


FIVE_RADIUS, FIVE_STD = 5.0, 0.5
# A mixture as noise: weights, means and standard deviations of three Gaussians.
MIXTURE = ((0.5, (0.0, 0.0), 1.0), (0.3, (-3.0, 2.0), 0.6), (0.2, (2.5, -2.5), 0.4))


def gaussian_mixture(count: int, generator: torch.Generator) -> Tensor:
    """Three Gaussians of different weights and widths, [count, 2] float32."""
    weights, means, deviations = (torch.tensor(each) for each in zip(*MIXTURE, strict=True))
    which = torch.multinomial(weights, count, replacement=True, generator=generator)
    return means[which] + deviations[which, None] * torch.randn(count, 2, generator=generator)


def five_gaussians(count: int, generator: torch.Generator) -> Tensor:
    """Five Gaussians on a circle, equally likely, [count, 2] float32."""
    angles = torch.randint(0, 5, (count,), generator=generator) * (2 * math.pi / 5)
    centres = FIVE_RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)
    return centres + FIVE_STD * torch.randn(count, 2, generator=generator)


POINT_SETS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "normal": normal,
    "eight_gaussians": eight_gaussians,
    "moons": moons,
    "checkerboard": checkerboard,
    "gaussian_mixture": gaussian_mixture,
    "five_gaussians": five_gaussians,
}
