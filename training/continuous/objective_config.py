"""The `objective` section of a recipe: which pairs of noise and data a continuous flow learns from."""

from typing import Annotated, Literal

from pydantic import Field

from starflow.training.frozen import Frozen


class _FlowMatching(Frozen):
    likelihood_steps: int = Field(10, gt=0)  # Runge-Kutta steps behind held-out bits/dim
    likelihood_samples: int = Field(256, gt=0)  # held-out samples behind it, at most: each takes many passes


class CfmConfig(_FlowMatching):
    """Independent pairs."""

    kind: Literal["cfm"]


class OtCfmConfig(_FlowMatching):
    """Pairs of an optimal transport plan inside every batch."""

    kind: Literal["ot-cfm"]
    solver: Literal["exact", "sinkhorn"] = "exact"  # an assignment, or the entropic plan, from which pairs are drawn
    kappa: float = Field(0.1, gt=0)  # sinkhorn: epsilon = kappa * dimensions, for the cost |x0 - x1|^2 / 2


class WeightedCfmConfig(_FlowMatching):
    """Independent pairs, weighted by a Gibbs kernel of their distance."""

    kind: Literal["w-cfm"]
    kappa: float = Field(gt=0)  # epsilon = kappa * sqrt(dimensions), or kappa * dimensions where the cost is squared
    cost: Literal["norm", "squared"] = "norm"  # |x0 - x1|, or |x0 - x1|^2 / 2
    # Which marginals the weights keep: none; that of the noise, by the mean weight of every noise over the data of its
    # batch; or both, by potentials that are learned beside the flow.
    marginals: Literal["none", "noise", "learned"] = "none"
    potential_steps: int = Field(1500, ge=0, le=1_000_000)  # learned: updates of the potentials before the first step
    potential_every: int = Field(2, gt=0)  # learned: steps between two updates after that
    normalise: Literal["batch", "running"] = "batch"  # weights have mean 1 over the batch, or over the steps so far
    running_decay: float = Field(0.99, gt=0, lt=1)  # memory of the running mean


ObjectiveConfig = Annotated[CfmConfig | OtCfmConfig | WeightedCfmConfig, Field(discriminator="kind")]
