"""The regression problem of each objective, and that its solution is the known field."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from starflow.training.continuous.config import ContinuousMlpConfig
from starflow.training.continuous.flow_matching import FlowMatching
from starflow.training.continuous.likelihood import flow_log_likelihood
from starflow.training.continuous.mlp import ContinuousMlp
from starflow.training.continuous.objective_config import ObjectiveConfig
from starflow.training.objective import Share
from tests.training.continuous.gaussian import plane


def objective(kind: str, **settings: Any) -> FlowMatching:
    return FlowMatching(TypeAdapter(ObjectiveConfig).validate_python({"kind": kind, **settings}))


def pairs(batch: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 2, generator=generator), 2 + torch.randn(batch, 2, generator=generator)


@pytest.mark.parametrize("kind", ["cfm", "ot-cfm", "w-cfm"])
def test_points_lie_on_straight_paths(kind: str) -> None:
    x0, x1 = pairs()
    task = objective(kind, **({"kappa": 1.0} if kind == "w-cfm" else {})).regression(
        x0, x1, torch.Generator().manual_seed(1)
    )
    assert task.t.min() >= 0 and task.t.max() < 1 and task.t.std() > 0.1
    # Data stay in their order; the path ends there, and begins at one of the noises, each used once.
    torch.testing.assert_close(task.x_t + (1 - task.t[:, None]) * task.velocity, x1)
    starts = task.x_t - task.t[:, None] * task.velocity
    nearest = torch.cdist(starts, x0).min(1)
    assert nearest.values.max() < 1e-5
    assert sorted(nearest.indices.tolist()) == list(range(16))
    assert (nearest.indices.tolist() == list(range(16))) == (kind != "ot-cfm")


class Constant(nn.Module):
    """v(x, t) = a, for all x and t."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.a.expand_as(x)


@pytest.mark.parametrize("size", [16, 4])
def test_weighted_gradient_is_brute_force_in_float64(size: int) -> None:
    x0, x1 = pairs()
    network, task = Constant(), objective("w-cfm", kappa=0.5)
    for loss in task.losses_from(x0, network, x1, None, torch.Generator().manual_seed(1), Share(size)):
        (loss * size / 16).backward()
    raw = torch.exp(-(x0 - x1).double().norm(dim=1) / (0.5 * 2**0.5))
    weights = raw / raw.mean()
    assert weights.max() > 3 * weights.min()
    # L = mean_i w_i |a - (x1 - x0)|^2 / 2
    expected = (weights[:, None] * (network.a.detach().double() - (x1 - x0).double())).mean(0)
    torch.testing.assert_close(network.a.grad, expected.float(), rtol=1e-5, atol=1e-6)
    sizes = weights.sum() ** 2 / weights.square().sum()
    assert float(task.figures["effective_sample_size"]) == pytest.approx(float(sizes), rel=1e-5)


def test_weights_vanish_for_a_large_kappa() -> None:
    x0, x1 = pairs()
    losses = [
        next(
            objective(kind, **settings).losses_from(
                x0, Constant(), x1, None, torch.Generator().manual_seed(1), Share(16)
            )
        )
        for kind, settings in (("cfm", {}), ("w-cfm", {"kappa": 1e6}))
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_noise_is_standard_normal_and_of_the_step() -> None:
    x1 = torch.full((4000, 2), 7.0)
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        seen.append((x - t[:, None] * x1) / (1 - t[:, None]))
        return torch.zeros_like(x)

    for seed in (1, 1, 2):
        list(objective("cfm").losses(network, x1, None, torch.Generator().manual_seed(seed), Share(4000)))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert abs(float(seen[0].mean())) < 0.05
    assert float(seen[0].std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kappa", [0, -1.0])
def test_kappa_must_be_positive(kappa: float) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        objective("w-cfm", kappa=kappa)


def test_a_trained_network_is_the_gaussian_oracle() -> None:
    """Learned velocity within 0.1 (root mean square, of 1.8 to 2.1) and likelihood within 0.05 nats of the closed form."""
    flow = plane(torch.float32)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = ContinuousMlp(ContinuousMlpConfig(dimensions=2, channels=64, layers=2))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    matching = objective("cfm")
    for _ in range(600):
        (loss,) = matching.losses(network, flow.draw(512, generator), None, generator, Share(512))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x0, x1 = torch.randn(1000, 2, generator=generator), flow.draw(1000, generator)
    errors, sizes = [], []
    for time in (0.05, 0.25, 0.5, 0.75, 0.95):
        t = torch.full((1000,), time)
        exact = flow.velocity_at((1 - time) * x0 + time * x1, t)
        errors.append((network((1 - time) * x0 + time * x1, t) - exact).square().sum(1).mean().sqrt().item())
        sizes.append(exact.square().sum(1).mean().sqrt().item())
    print("velocity error", errors, "of", sizes)
    assert min(sizes) > 1
    assert max(errors) < 0.1
    found = flow_log_likelihood(lambda x, t: network(x, t), x1, steps=20)
    difference = found - flow.log_density(x1)
    print("log-likelihood: bias", float(difference.mean()), "rms", float(difference.square().mean().sqrt()))
    assert abs(float(difference.mean())) < 0.05
    assert float(difference.square().mean().sqrt()) < 0.1
