"""Pairs and weights, against brute force in float64."""

import itertools

import numpy as np
import pytest
import torch

from starflow.runtime.plain.errors import UsageError
from starflow.training.continuous.coupling import (
    WeightNormaliser,
    all_costs,
    effective_sample_size,
    entropic_transport,
    epsilon_of,
    gibbs_log_weights,
    noise_log_marginal,
    transport,
)


@pytest.mark.parametrize("shape", [(6, 2), (6, 1, 2, 3)])
def test_transport_is_the_best_of_all_permutations(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(shape, generator=generator), 3 * torch.randn(shape, generator=generator)
    paired = transport(x0, x1)

    def cost(rows: torch.Tensor) -> float:
        return float((rows - x1).double().square().sum())

    best = min(cost(x0[list(order)]) for order in itertools.permutations(range(6)))
    assert cost(paired) == pytest.approx(best, rel=1e-6)
    assert cost(x0) > 1.05 * best
    assert sorted(paired.flatten(1).tolist()) == sorted(x0.flatten(1).tolist())


def test_log_weights_in_many_dimensions() -> None:
    """At d = 3072 raw weights are tiny; their ratios are what counts, and they are those of float64."""
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(64, 3, 32, 32, generator=generator), torch.rand(64, 3, 32, 32, generator=generator)
    epsilon = epsilon_of(0.08, 3072)
    assert epsilon == pytest.approx(0.08 * 3072**0.5)
    distances = np.sqrt(((x0.double() - x1.double()).numpy().reshape(64, -1) ** 2).sum(1))
    log_weights = gibbs_log_weights(x0, x1, epsilon)
    np.testing.assert_allclose(log_weights.numpy(), -distances / epsilon, rtol=1e-6)
    raw = np.exp(-distances / epsilon)
    assert raw.max() < 1e-5
    weights = WeightNormaliser()(log_weights, epsilon)
    np.testing.assert_allclose(weights.numpy(), raw / raw.mean(), rtol=2e-5)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-5)


def test_the_norm_is_not_squared() -> None:
    x0, x1 = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    torch.testing.assert_close(gibbs_log_weights(x0, x1, 2.0), torch.tensor([-2.5, -5.0]))


def test_the_squared_cost_is_half_the_square() -> None:
    x0, x1 = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    torch.testing.assert_close(gibbs_log_weights(x0, x1, 2.0, "squared"), torch.tensor([-6.25, -25.0]))
    assert epsilon_of(0.5, 16, "squared") == 8
    for cost in ("norm", "squared"):
        every = all_costs(x0.double(), x1.double(), cost)
        torch.testing.assert_close(every.diagonal().float(), -gibbs_log_weights(x0, x1, 1.0, cost))
        assert every[0, 1] == every[1, 1]


def test_noise_keeps_its_marginal() -> None:
    """Divided by the mean over the data, the weights of every noise have mean one."""
    generator = torch.Generator().manual_seed(0)
    x0, x1 = 4 * torch.randn(40, 3, generator=generator), torch.randn(50, 3, generator=generator)
    costs = all_costs(x0.double(), x1.double(), "norm") / 0.3
    weights = torch.exp(-costs - noise_log_marginal(costs)[:, None])
    torch.testing.assert_close(weights.mean(1), torch.ones(40, dtype=torch.float64))
    assert weights.mean(0).std() > 0.5  # the data pay for it


def test_entropic_pairs_are_drawn_from_the_plan() -> None:
    """Three points against three: the frequencies are those of Sinkhorn's plan in float64, by plain scaling.

    A batch that has each of them a hundred times has the same plan, and draws a hundred times at once.
    """
    x0 = torch.tensor([[0.0], [1.0], [4.0]])
    x1 = torch.tensor([[0.5], [3.0], [3.5]])
    kernel = np.exp(-((x0.numpy() - x1.numpy().T) ** 2) / 2 / 1.3)
    u = np.ones(3)
    for _ in range(1000):
        v = 1 / (kernel.T @ u)
        u = 1 / (kernel @ v)
    plan = u[:, None] * kernel * v
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-9)
    generator, counts = torch.Generator().manual_seed(0), np.zeros((3, 3))
    for _ in range(40):
        drawn = entropic_transport(x0.repeat(100, 1), x1.repeat(100, 1), 1.3, generator)
        for place, value in enumerate(drawn[:, 0].tolist()):
            counts[[0.0, 1.0, 4.0].index(value), place % 3] += 1
    np.testing.assert_allclose(counts / 4000, plan, atol=0.03)


def test_running_mean_is_the_recursion_in_float64() -> None:
    generator = np.random.default_rng(0)
    batches = [-generator.gamma(5.0, 1.0, 32) - 40 for _ in range(5)]
    normalise, mean = WeightNormaliser(decay=0.7), None
    for log_weights in batches:
        raw = np.exp(log_weights)
        mean = raw.mean() if mean is None else 0.7 * mean + 0.3 * raw.mean()
        found = normalise(torch.from_numpy(log_weights).float(), 1.0)
        np.testing.assert_allclose(found.numpy(), raw / mean, rtol=1e-4)


def test_effective_sample_size_counts() -> None:
    assert float(effective_sample_size(torch.full((50,), 0.3))) == pytest.approx(50)
    assert float(effective_sample_size(torch.tensor([1.0, 0.0, 0.0]))) == 1
    assert float(effective_sample_size(torch.tensor([1.0, 3.0]))) == pytest.approx(16 / 10)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(UsageError, match="expected a number above 0"):
        gibbs_log_weights(torch.zeros(2, 2), torch.ones(2, 2), epsilon)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_underflow_suggests_an_epsilon_that_works(decay: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(32, 2, generator=generator), 5 + torch.randn(32, 2, generator=generator)
    with pytest.raises(UsageError, match=r"epsilon 0\.0001 is too small.*take one near ([\d.]+)") as caught:
        WeightNormaliser(decay)(gibbs_log_weights(x0, x1, 1e-4), 1e-4)
    suggested = float(str(caught.value).split("take one near ")[1].split(",")[0])
    weights = WeightNormaliser(decay)(gibbs_log_weights(x0, x1, suggested), suggested)
    assert effective_sample_size(weights) > 8


def test_log_weights_that_overflow_get_advice_without_a_number() -> None:
    log_weights = gibbs_log_weights(torch.zeros(8, 2), torch.rand(8, 2), 1e-300)
    with pytest.raises(UsageError, match=r"epsilon 1e-300 is too small.*spread of the distances") as caught:
        WeightNormaliser()(log_weights, 1e-300)
    assert "nan" not in str(caught.value)


def test_a_batch_that_vanishes_under_the_running_mean_is_refused() -> None:
    normalise = WeightNormaliser(decay=0.9)
    normalise(torch.tensor([-1.0, -2.0]), 1.0)
    with pytest.raises(UsageError, match="too small"):
        normalise(torch.tensor([-200.0, -201.0]), 1.0)
