"""Flow matching between Gaussians in closed form: the oracle of this folder's tests.

With x0 ~ N(0, I), x1 ~ N(m, S) independent and x_t = (1 - t) x0 + t x1, the pair (x_t, x1 - x0) is Gaussian, so the velocity
flow matching learns is the linear regression E[x1 - x0 | x_t = x] = m + A(t) (x - t m), with

    A(t) = (t S - (1 - t) I) (t^2 S + (1 - t)^2 I)^-1.
"""

import torch
from torch import Tensor


class GaussianFlow:
    """The exact velocity field from N(0, I) to N(mean [D], covariance [D, D])."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean, covariance

    def slope(self, t: float) -> Tensor:
        """A(t), [D, D]; its trace is the divergence."""
        eye = torch.eye(len(self.mean), dtype=self.mean.dtype)
        return (t * self.covariance - (1 - t) * eye) @ torch.linalg.inv(t**2 * self.covariance + (1 - t) ** 2 * eye)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, D] at times [B] -> [B, D]."""
        rows = [
            self.mean + self.slope(float(time)) @ (point - time * self.mean) for point, time in zip(x, t, strict=True)
        ]
        return torch.stack(rows)

    def velocity_at(self, x: Tensor, t: Tensor) -> Tensor:
        """`velocity` where all samples share a time, which is much faster."""
        time = float(t[0])
        return self.mean + (x - time * self.mean) @ self.slope(time).T

    def log_density(self, x: Tensor) -> Tensor:
        return torch.distributions.MultivariateNormal(self.mean, self.covariance).log_prob(x)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + noise @ torch.linalg.cholesky(self.covariance).T


def plane(dtype: torch.dtype = torch.float64) -> GaussianFlow:
    """A tilted Gaussian in the plane, away from the origin."""
    return GaussianFlow(torch.tensor([1.5, -0.5], dtype=dtype), torch.tensor([[0.8, 0.5], [0.5, 0.6]], dtype=dtype))
