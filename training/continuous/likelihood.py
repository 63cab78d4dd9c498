"""Likelihood of a continuous flow, by the instantaneous change of variables.

Along dx/dt = v(x, t) the density obeys d log p(x(t)) / dt = -div v(x(t), t) (Chen et al., NeurIPS 2018, theorem 1). So, with x(1) the
data and x(0) its noise,

    log p(x(1)) = log p_0(x(0)) - integral over t from 0 to 1 of div v(x(t), t).

The divergence is the exact trace of the Jacobian, a backward pass a dimension, or Hutchinson's estimate e^T (dv/dx) e with one
random e of +-1 a sample for the whole path (Grathwohl et al., FFJORD, ICLR 2019, section 3.1): unbiased for the integral.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from starflow.training.flow import gaussian_log_density

EXACT_UP_TO = 4  # dimensions: beyond, a trace takes too many backward passes
GRADING = 3  # steps at t = 1 - (k / steps)^3: small where data are sharp and the divergence grows fast

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], t [B]) -> dx/dt


def velocity_and_divergence(velocity: Velocity, x: Tensor, t: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
    """v [B, ...] and div v [B] of every sample.

    Args:
        velocity: The field; a sample's velocity depends on that sample alone.
        x: [B, ...].
        t: [B].
        probe: [B, ...] of +-1 for Hutchinson's estimate; None for the exact trace.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t)
        if probe is not None:
            (gradient,) = torch.autograd.grad(v, x, probe)
            divergence = (gradient * probe).flatten(1).sum(1)
        else:
            parts = v.flatten(1)
            divergence = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for index in range(parts.shape[1]):
                (gradient,) = torch.autograd.grad(parts[:, index].sum(), x, retain_graph=True)
                divergence += gradient.flatten(1)[:, index]
    return v.detach(), divergence.detach()


def flow_log_likelihood(
    velocity: Velocity,
    x: Tensor,
    *,
    steps: int,
    generator: torch.Generator | None = None,
    exact: bool | None = None,
    log_prior: Callable[[Tensor], Tensor] = gaussian_log_density,
) -> Tensor:
    """log p(x) [B] in nats: integrate from data at t = 1 back to noise by fourth-order Runge-Kutta steps on a graded grid.

    Args:
        x: Data [B, ...].
        steps: Number of steps; each evaluates the field and its divergence four times.
        generator: Random numbers of Hutchinson's estimate.
        exact: Take the exact trace; the default does so up to 4 dimensions.
        log_prior: log density of the noise, [B, ...] -> [B] nats.
    """
    probe = None
    if not (x[0].numel() <= EXACT_UP_TO if exact is None else exact):
        probe = torch.randint(0, 2, x.shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1

    def slope(state: Tensor, time: float) -> tuple[Tensor, Tensor]:
        t = torch.full((len(x),), time, dtype=x.dtype, device=x.device)
        return velocity_and_divergence(velocity, state, t, probe)

    integral = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    grid = [1 - (index / steps) ** GRADING for index in range(steps + 1)]
    for t, following in pairwise(grid):
        h = t - following
        v1, d1 = slope(x, t)
        v2, d2 = slope(x - 0.5 * h * v1, t - 0.5 * h)
        v3, d3 = slope(x - 0.5 * h * v2, t - 0.5 * h)
        v4, d4 = slope(x - h * v3, following)
        x = x - h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        integral = integral + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return log_prior(x) - integral
