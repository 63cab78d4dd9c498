"""Conditional flow matching: regress the velocity of straight paths between noise and data.

x_t = (1 - t) x0 + t x1, with velocity x1 - x0 (Lipman et al., ICLR 2023, section 4; Tong et al., TMLR 2024), and

    L = E_{t, (x0, x1)} w(x0, x1) |v(x_t, t) - (x1 - x0)|^2 / d

where the three objectives differ in the pairs and their weights: independent pairs and w = 1 (CFM), pairs of a transport plan
inside the batch and w = 1 (OT-CFM), independent pairs and a Gibbs kernel (W-CFM; see `coupling` and `potentials`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
from starflow.training.continuous.likelihood import flow_log_likelihood
from starflow.training.continuous.model import ContinuousFlow
from starflow.training.continuous.objective_config import ObjectiveConfig, OtCfmConfig, WeightedCfmConfig
from starflow.training.continuous.potentials import Potentials
from starflow.training.objective import Objective, Share
from starflow.training.random_streams import POTENTIALS, generator_for


@dataclass(frozen=True)
class Regression:
    """One batch of the regression problem."""

    x_t: Tensor  # [B, ...] points on the paths
    t: Tensor  # [B] times in [0, 1)
    velocity: Tensor  # [B, ...] x1 - x0, to be predicted
    weights: Tensor | None  # [B] of mean one, or None where all are one


class FlowMatching(Objective[ContinuousFlow]):
    """Any of the three objectives, by configuration."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.judged = config.likelihood_samples
        running = isinstance(config, WeightedCfmConfig) and config.normalise == "running"
        self._normalise = WeightNormaliser(config.running_decay if running else None)  # type: ignore[union-attr]
        self.memory = self._normalise.memory
        self._potentials: Potentials | None = None  # until the first batch tells their size

    def regression(self, x0: Tensor, x1: Tensor, generator: torch.Generator) -> Regression:
        """Pair noise x0 [B, ...] with data x1 [B, ...] and draw a time for every pair.

        Raises:
            UsageError: all weights underflow; the message suggests an epsilon.
        """
        config, weights = self.config, None
        if isinstance(config, OtCfmConfig):
            if config.solver == "exact":
                x0 = transport(x0, x1)
            else:
                x0 = entropic_transport(x0, x1, epsilon_of(config.kappa, x1[0].numel(), "squared"), generator)
        elif isinstance(config, WeightedCfmConfig):
            epsilon = epsilon_of(config.kappa, x1[0].numel(), config.cost)
            weights = self._normalise(self._log_weights(config, x0, x1, epsilon), epsilon)
            self.figures["effective_sample_size"] = effective_sample_size(weights)
        t = torch.rand(len(x1), generator=generator, device=x1.device)
        place = t.view(-1, *[1] * (x1.ndim - 1))
        return Regression((1 - place) * x0 + place * x1, t, x1 - x0, weights)

    def _log_weights(self, config: WeightedCfmConfig, x0: Tensor, x1: Tensor, epsilon: float) -> Tensor:
        """log w of B pairs, with the marginals of the configuration."""
        log_weights = gibbs_log_weights(x0, x1, epsilon, config.cost)
        if config.marginals == "noise":
            return log_weights - noise_log_marginal(all_costs(x0, x1, config.cost) / epsilon)
        if config.marginals == "learned":
            potentials = self._potentials_for(x1)
            if int(self.memory["steps"]) % config.potential_every == 0:
                value = potentials.update(x0, x1, all_costs(x0, x1, config.cost) / epsilon)
                self.figures["potential_dual"] = value
            self.memory["steps"] += 1
            return log_weights + potentials.log_weights(x0, x1)
        return log_weights

    def _potentials_for(self, x1: Tensor) -> Potentials:
        if self._potentials is None:
            self._potentials = Potentials(x1[0].numel(), x1.device)
            self.memory.update(self._potentials.memory, steps=torch.zeros((), dtype=torch.int64))
        return self._potentials

    def prepare(self, draw: Callable[[int], Tensor], seed: int) -> None:
        config = self.config
        if not isinstance(config, WeightedCfmConfig) or config.marginals != "learned":
            return
        for index in range(config.potential_steps):
            x1 = draw(index)
            x0 = torch.randn(x1.shape, generator=generator_for(seed, POTENTIALS, index, x1.device), device=x1.device)
            self.learn_potentials(x0, x1)

    def learn_potentials(self, x0: Tensor, x1: Tensor) -> None:
        """Update the potentials of a weighted objective by one batch, from noise x0 [B, ...] of any distribution."""
        config = self.config
        assert isinstance(config, WeightedCfmConfig)
        costs = all_costs(x0, x1, config.cost) / epsilon_of(config.kappa, x1[0].numel(), config.cost)
        self._potentials_for(x1).update(x0, x1, costs)

    def restore(self, memory: Mapping[str, Tensor]) -> None:
        if "potentials.updates" in memory:
            first = memory["potentials.noise.0.weight"]
            self._potentials_for(first.new_zeros(1, first.shape[1])).restore(memory)
            memory = {name: value for name, value in memory.items() if not name.startswith("potentials.")}
        super().restore(memory)

    def losses(
        self, network: Callable[..., Any], x: Tensor, y: Tensor | None, generator: torch.Generator, share: Share
    ) -> Iterator[Tensor]:
        x0 = torch.randn(x.shape, generator=generator, device=x.device)
        return self.losses_from(x0, network, x, y, generator, share)

    def losses_from(
        self,
        x0: Tensor,
        network: Callable[..., Any],
        x1: Tensor,
        y: Tensor | None,
        generator: torch.Generator,
        share: Share,
    ) -> Iterator[Tensor]:
        """`losses` from noise x0 [B, ...] of any distribution."""
        task = self.regression(x0, x1, generator)
        for part in share.of(len(x1), x1.device):
            v = network(task.x_t[part], task.t[part], None if y is None else y[part])
            error = (v - task.velocity[part]).square().flatten(1).mean(1)
            yield (error if task.weights is None else task.weights[part] * error).mean()

    def log_likelihood(self, model: ContinuousFlow, x: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        return flow_log_likelihood(
            lambda state, t: model(state, t, y), x, steps=self.config.likelihood_steps, generator=generator
        )
