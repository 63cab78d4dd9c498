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


class WeightedCfmConfig(_FlowMatching):
    """Independent pairs, weighted by a Gibbs kernel of their distance."""

    kind: Literal["w-cfm"]
    kappa: float = Field(gt=0)  # epsilon = kappa * sqrt(dimensions)
    normalise: Literal["batch", "running"] = "batch"  # weights have mean 1 over the batch, or over the steps so far
    running_decay: float = Field(0.99, gt=0, lt=1)  # memory of the running mean


ObjectiveConfig = Annotated[CfmConfig | OtCfmConfig | WeightedCfmConfig, Field(discriminator="kind")]
