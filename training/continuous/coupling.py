"""Pairs of noise and data: rearranged by optimal transport, or weighted by a Gibbs kernel.

Weighted conditional flow matching (Calvo-Ordonez et al., 2025, arXiv 2507.22270) replaces transport inside a batch by
weights w(x0, x1) = exp(-|x0 - x1| / epsilon) on independent pairs: up to its marginals, q(x0) q(x1) w(x0, x1) is the entropic
transport plan. The norm is not squared. Weights are kept as logarithms: in thousands of dimensions they are all small, and
only their ratios matter.
"""

import math

import torch
from torch import Tensor

from starflow.runtime.plain.errors import UsageError


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


def epsilon_of(kappa: float, dimensions: int) -> float:
    """epsilon = kappa * sqrt(d): distances grow with sqrt(d), so kappa means the same in every dimension."""
    return kappa * math.sqrt(dimensions)


def gibbs_log_weights(x0: Tensor, x1: Tensor, epsilon: float) -> Tensor:
    """log w(x0, x1) = -|x0 - x1| / epsilon, [B, ...] twice -> [B] float32; UsageError if epsilon is not above 0."""
    if not epsilon > 0:
        raise UsageError(f"epsilon: found {epsilon:g}, expected a number above 0")
    return -torch.linalg.vector_norm((x0 - x1).flatten(1).float(), dim=1) / epsilon


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
