"""Learned potentials: the dual's optimum in closed form, marginals that come back, exact resume."""

import copy
import math

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from starflow.training.continuous.coupling import all_costs, gibbs_log_weights
from starflow.training.continuous.flow_matching import FlowMatching
from starflow.training.continuous.objective_config import ObjectiveConfig
from starflow.training.continuous.potentials import Potentials

CPU = torch.device("cpu")


def gaussians(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 1, generator=generator), 2 + 0.5 * torch.randn(count, 1, generator=generator)


@pytest.fixture(scope="module")
def learned() -> Potentials:
    """Of N(0, 1) and N(2, 1/4) on the line, with the cost |x0 - x1|^2 / 2 and epsilon 1."""
    potentials, generator = Potentials(1, CPU), torch.Generator().manual_seed(0)
    for _ in range(1200):
        x0, x1 = gaussians(256, generator)
        potentials.update(x0, x1, all_costs(x0, x1, "squared"))
    return potentials


def test_the_weighted_pairs_are_the_entropic_plan_of_gaussians(learned: Potentials) -> None:
    """Its marginals are the two Gaussians, and its covariance is known (Janati et al., NeurIPS 2020, theorem 1).

    With variances a, b and the cost |x - y|^2 / 2: cov = (sqrt(4 a b + eps^2) - eps) / 2.
    """
    x0, x1 = gaussians(400_000, torch.Generator().manual_seed(5))
    weights = torch.exp(learned.log_weights(x0, x1) + gibbs_log_weights(x0, x1, 1.0, "squared")).double()
    plain = torch.exp(gibbs_log_weights(x0, x1, 1.0, "squared")).double()

    def moments(w: Tensor) -> list[float]:
        w, x, y = w / w.sum(), x0[:, 0].double(), x1[:, 0].double()
        means = float((w * x).sum()), float((w * y).sum())
        x, y = x - means[0], y - means[1]
        return [*means, *(float((w * part).sum()) for part in (x * x, y * y, x * y))]

    expected = [0, 2, 1, 0.25, (math.sqrt(4 * 0.25 + 1) - 1) / 2]
    assert moments(weights) == pytest.approx(expected, abs=0.04)
    assert abs(moments(plain)[0]) > 0.5  # without potentials both marginals are bent


def test_marginal_weights_are_one_everywhere(learned: Potentials) -> None:
    x0, x1 = gaussians(4000, torch.Generator().manual_seed(6))
    with torch.no_grad():
        f, g = learned._values(x0, x1)
    weights = torch.exp(f[:, None] + g[None] - all_costs(x0, x1, "squared"))
    weights = weights / weights.mean()
    for axis in (0, 1):
        assert float((weights.mean(axis) - 1).square().mean().sqrt()) < 0.1
    plain = torch.exp(-all_costs(x0, x1, "squared"))
    assert float((plain.mean(1) / plain.mean() - 1).square().mean().sqrt()) > 0.5


def test_updates_are_those_of_torchs_adam() -> None:
    potentials, generator = Potentials(1, CPU), torch.Generator().manual_seed(0)
    reference = copy.deepcopy(potentials.networks)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3)
    for _ in range(5):
        x0, x1 = gaussians(64, generator)
        costs = all_costs(x0, x1, "norm") / 0.7
        potentials.update(x0, x1, costs)
        f, g = reference["noise"](x0)[:, 0], reference["data"](x1)[:, 0]
        value = f.mean() + g.mean() - torch.exp(f[:, None] + g[None] - costs).mean().log()
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
    for one, other in zip(potentials.networks.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def learned_objective() -> FlowMatching:
    settings = {"kind": "w-cfm", "kappa": 0.5, "cost": "squared", "marginals": "learned", "potential_steps": 4}
    return FlowMatching(TypeAdapter(ObjectiveConfig).validate_python(settings))


def test_an_objective_resumes_its_potentials_exactly() -> None:
    def steps(objective: FlowMatching, seeds: range) -> list[Tensor]:
        found = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            task = objective.regression(*gaussians(32, generator), generator)
            assert task.weights is not None
            found.append(task.weights)
        return found

    whole, stopped, resumed = (learned_objective() for _ in range(3))
    whole.prepare(lambda index: gaussians(32, torch.Generator().manual_seed(index))[1], seed=3)
    stopped.prepare(lambda index: gaussians(32, torch.Generator().manual_seed(index))[1], seed=3)
    assert int(whole.memory["potentials.updates"]) == 4
    expected = steps(whole, range(7))
    steps(stopped, range(3))
    resumed.restore({name: value.clone() for name, value in stopped.memory.items()})
    for one, other in zip(expected[3:], steps(resumed, range(3, 7)), strict=True):
        assert torch.equal(one, other)
    assert int(whole.memory["potentials.updates"]) == 4 + 4  # every other of seven steps
