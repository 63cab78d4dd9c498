"""The instantaneous change of variables, against densities in closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from starflow.training.continuous.likelihood import flow_log_likelihood, velocity_and_divergence
from starflow.training.points import eight_gaussians, eight_gaussians_log_density
from tests.training.continuous.gaussian import GaussianFlow, plane


def test_the_oracle_is_the_derivative_of_the_known_map() -> None:
    """For commuting covariances the flow is x(t) = t m + sqrt(t^2 S + (1 - t)^2) x(0): differentiate it."""
    flow = GaussianFlow(torch.tensor([1.0], dtype=torch.float64), torch.tensor([[0.25]], dtype=torch.float64))
    x0 = torch.tensor([[0.7]], dtype=torch.float64)

    def at(t: float) -> Tensor:
        return t * flow.mean + math.sqrt(t**2 * 0.25 + (1 - t) ** 2) * x0

    for t in (0.2, 0.5, 0.9):
        slope = (at(t + 1e-5) - at(t - 1e-5)) / 2e-5
        torch.testing.assert_close(flow.velocity_at(at(t), torch.tensor([t])), slope, rtol=1e-7, atol=1e-7)


def test_exact_trace_gives_the_gaussian_density() -> None:
    flow = plane()
    x = flow.draw(64, torch.Generator().manual_seed(0))
    found = flow_log_likelihood(flow.velocity_at, x, steps=80)
    torch.testing.assert_close(found, flow.log_density(x), rtol=0, atol=1e-6)


def test_error_falls_with_the_fourth_power_of_the_step() -> None:
    flow = plane()
    x = flow.draw(64, torch.Generator().manual_seed(0))
    errors = [
        float((flow_log_likelihood(flow.velocity_at, x, steps=steps) - flow.log_density(x)).abs().max())
        for steps in (16, 32, 64)
    ]
    assert 11 < errors[0] / errors[1] < 24
    assert 11 < errors[1] / errors[2] < 24


def test_hutchinson_is_unbiased_and_repeatable() -> None:
    flow = plane()
    x = flow.draw(1, torch.Generator().manual_seed(0)).expand(4000, 2)
    estimates = [
        flow_log_likelihood(flow.velocity_at, x, steps=16, exact=False, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*estimates)
    (found, _) = estimates
    expected = flow_log_likelihood(flow.velocity_at, x[:1], steps=16)
    assert found.std() > 0.1  # the field is not diagonal: single estimates differ
    assert abs(float(found.mean() - expected)) < 4 * float(found.std()) / 4000**0.5


def test_divergence_is_the_trace_of_the_jacobian() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 12)).double()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return network(torch.cat([x.flatten(1), t[:, None]], 1)).view_as(x)

    x, t = torch.randn(3, 3, 2, 2, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    v, exact = velocity_and_divergence(velocity, x, t, None)
    torch.testing.assert_close(v, velocity(x, t).detach())
    for index in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda each, at=index: velocity(each[None], t[at : at + 1])[0].flatten(), x[index]
        ).reshape(12, 12)
        assert float(exact[index]) == pytest.approx(float(jacobian.trace()), rel=1e-9)
    # All 2^12 probes: their mean is the trace exactly.
    signs = 2 * ((torch.arange(4096)[:, None] >> torch.arange(12)) & 1).double() - 1
    rows = x[:1].expand(4096, -1, -1, -1)
    _, estimates = velocity_and_divergence(velocity, rows, t[:1].expand(4096), signs.view(-1, 3, 2, 2))
    assert float(estimates.mean()) == pytest.approx(float(exact[0]), rel=1e-9)


def test_other_noise_has_its_own_density() -> None:
    x = eight_gaussians(50, torch.Generator().manual_seed(0))
    shifted = flow_log_likelihood(
        lambda state, t: torch.ones_like(state) + 0 * state, x + 1, steps=3, log_prior=eight_gaussians_log_density
    )
    torch.testing.assert_close(shifted, eight_gaussians_log_density(x), rtol=1e-4, atol=1e-4)


def test_the_mixture_density_integrates_to_one() -> None:
    line = torch.linspace(-9, 9, 400)
    grid = torch.cartesian_prod(line, line)
    cell = float(line[1] - line[0]) ** 2
    assert float(eight_gaussians_log_density(grid).exp().sum() * cell) == pytest.approx(1, abs=1e-4)


def test_a_field_that_is_not_linear_in_closed_form() -> None:
    """dx/dt = -x^3 / 2 moves x(0) to x(0) / sqrt(1 + x(0)^2): p(x) = N(x / sqrt(1 - x^2)) (1 - x^2)^(-3/2)."""
    x = torch.linspace(-0.6, 0.6, 13, dtype=torch.float64)[:, None]
    start = x / (1 - x.square()).sqrt()
    expected = (-0.5 * start.square() - 0.5 * math.log(2 * math.pi) - 1.5 * torch.log(1 - x.square()))[:, 0]
    errors = [
        float((flow_log_likelihood(lambda state, t: -0.5 * state**3, x, steps=steps) - expected).abs().max())
        for steps in (10, 20, 40)
    ]
    assert errors[2] < 1e-6
    assert 11 < errors[0] / errors[1] < 24
    assert 11 < errors[1] / errors[2] < 24
