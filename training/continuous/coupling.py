"""Pairs of noise and data: rearranged by optimal transport, or weighted by a Gibbs kernel.

Weighted conditional flow matching (Calvo-Ordonez et al., 2025, arXiv 2507.22270) replaces transport inside a batch by
weights w(x0, x1) = exp(-|x0 - x1| / epsilon) on independent pairs: up to its marginals, q(x0) q(x1) w(x0, x1) is the entropic
transport plan of the cost |x0 - x1|. In the paper the norm is not squared; with |x0 - x1|^2 / 2 in its place the plan is that
of entropic W2. Weights are kept as logarithms: in thousands of dimensions they are all small, and only their ratios matter.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from starflow.runtime.plain.errors import UsageError

SINKHORN_ITERATIONS = 50
Cost = Literal["norm", "squared"]  # |x0 - x1|, or |x0 - x1|^2 / 2


def transport(x0: Tensor, x1: Tensor) -> Tensor:
    """Rearrange noise so that the batch is paired at the least mean squared distance.

    Minibatch OT-CFM (Tong et al., TMLR 2024, algorithm 3). Between two batches of one size with equal weights, an optimal plan
    is a permutation, which scipy's assignment solver finds exactly. Data x1 [B, ...] keep their order; the rows of the noise
    x0 [B, ...] are returned in their new one.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and an export needs none of it

    cost = torch.cdist(x0.flatten(1), x1.flatten(1)).square()
    sources, targets = linear_sum_assignment(cost.cpu().numpy())
    order = torch.empty(len(x0), dtype=torch.int64)
    order[torch.from_numpy(targets)] = torch.from_numpy(sources)
    return x0[order.to(x0.device)]


def entropic_transport(x0: Tensor, x1: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Draw for each data point x1 [B, ...] its noise, from the entropic transport plan of the batch; some noise may come twice.

    Sinkhorn's algorithm on |x0 - x1|^2 / 2 with regularisation epsilon (Cuturi, NeurIPS 2013), in logarithms.
    """
    log_kernel = -all_costs(x0, x1, "squared") / epsilon
    f = torch.zeros(len(x0), device=x0.device)
    for _ in range(SINKHORN_ITERATIONS):
        g = -torch.logsumexp(log_kernel + f[:, None], 0)
        f = -torch.logsumexp(log_kernel + g[None], 1)
    plan = torch.softmax(log_kernel + f[:, None], 0)  # of noise, given each data point
    return x0[torch.multinomial(plan.T, 1, generator=generator)[:, 0]]


def epsilon_of(kappa: float, dimensions: int, cost: Cost = "norm") -> float:
    """epsilon = kappa * sqrt(d), as distances grow with sqrt(d); for the squared cost kappa * d.

    This keeps a kappa within an order of magnitude, but does not give it one meaning in every dimension: weights depend on how
    distances *vary*, which grows less than they do. Choose kappa for each data set (see `tilt`).
    """
    return kappa * (math.sqrt(dimensions) if cost == "norm" else dimensions)


def pair_costs(x0: Tensor, x1: Tensor, cost: Cost) -> Tensor:
    """c(x0, x1) of B pairs, |x0 - x1| or |x0 - x1|^2 / 2: [B, ...] twice -> [B] float32."""
    distances = torch.linalg.vector_norm((x0 - x1).flatten(1).float(), dim=1)
    return distances if cost == "norm" else 0.5 * distances.square()


def all_costs(x0: Tensor, x1: Tensor, cost: Cost) -> Tensor:
    """c of all pairs of [N, ...] and [M, ...]: [N, M], float32, or float64 where x0 is."""
    one, other = (x.flatten(1) if x.dtype == torch.float64 else x.flatten(1).float() for x in (x0, x1))
    distances = torch.cdist(one, other)
    return distances if cost == "norm" else 0.5 * distances.square()


def gibbs_log_weights(x0: Tensor, x1: Tensor, epsilon: float, cost: Cost = "norm") -> Tensor:
    """log w(x0, x1) = -c(x0, x1) / epsilon, [B, ...] twice -> [B] float32; UsageError if epsilon is not above 0."""
    if not epsilon > 0:
        raise UsageError(f"epsilon: found {epsilon:g}, expected a number above 0")
    return -pair_costs(x0, x1, cost) / epsilon


def noise_log_marginal(costs: Tensor) -> Tensor:
    """log of the marginal weight of every noise, over the data of its batch: c / epsilon [B, B] -> [B]."""
    return torch.logsumexp(-costs, 1) - math.log(costs.shape[1])


class WeightNormaliser:
    """Turn log-weights into weights of mean one, over the batch or, with a decay, over a running mean of all batches.

    Over the batch, the loss is a self-normalised average: biased by O(1 / B), and with one scale at all times. The running mean
    m <- decay * m + (1 - decay) * mean(w) begins with the first batch; `memory` keeps its logarithm.
    """

    def __init__(self, decay: float | None = None) -> None:
        self.decay = decay
        self.memory: dict[str, Tensor] = {}

    def __call__(self, log_weights: Tensor, epsilon: float) -> Tensor:
        """Weights [B] of log-weights [B]; UsageError if every one, or every one but the largest, underflows."""
        log_mean = torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
        if self.decay is not None:
            before = self.memory.get("log_mean_weight")
            if before is not None:
                log_mean = torch.logaddexp(before + math.log(self.decay), log_mean + math.log1p(-self.decay))
            self.memory["log_mean_weight"] = log_mean
        weights = torch.exp(log_weights - log_mean)
        if torch.count_nonzero(weights) < min(2, len(weights)) or not weights.isfinite().all():
            # With epsilon = the spread of the distances, log-weights have a standard deviation of one.
            fitting = float((log_weights.double() * epsilon).std()) if len(weights) > 1 else 10 * epsilon
            mend = f"take one near {fitting:.3g}, or raise kappa {fitting / epsilon:.2g}-fold"
            if not math.isfinite(fitting):  # the logarithms themselves overflow
                mend = "take one as large as the spread of the distances between noise and data"
            raise UsageError(
                f"epsilon {epsilon:.3g} is too small: the weights of {len(weights)} pairs underflow beside the largest one;"
                f" {mend}"
            )
        return weights


def effective_sample_size(weights: Tensor) -> Tensor:
    """Kish's (sum w)^2 / sum w^2 of weights [B], in samples: B when all are equal, 1 when one has everything."""
    return weights.sum().square() / weights.square().sum()
