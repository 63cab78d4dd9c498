"""Maximum likelihood: what training an autoregressive flow minimises."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.autoregressive.tarflow import Tarflow
from starflow.training.objective import Objective, Share


class MaximumLikelihood(Objective[AutoregressiveFlow]):
    """The exact likelihood of an autoregressive flow: the loss is the model's own."""

    loss_is_likelihood = True

    def __init__(self, model: AutoregressiveFlow) -> None:
        super().__init__()
        # Without scales, the prior has to learn them.
        self._learned_prior = model if isinstance(model, Tarflow) and not model.config.nvp else None

    def losses(
        self, network: Callable[..., Any], x: Tensor, y: Tensor | None, generator: torch.Generator, share: Share
    ) -> Iterator[Tensor]:
        z = []
        for part in share.of(len(x), x.device):
            out = network(x[part], None if y is None else y[part])
            z.append(out.z.detach())
            yield out.loss
        if self._learned_prior is not None:
            squares, var = self.process_mean(torch.cat(z).square().mean(0)), self._learned_prior.var
            # The gradient is that of a standard normal prior, as published; the likelihood has the learned one.
            self.figures["likelihood_loss"] = 0.5 * ((squares / var).mean() + var.log().mean())
            self._learned_prior.update_prior(squares.sqrt()[None])

    def log_likelihood(
        self, model: AutoregressiveFlow, x: Tensor, y: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        return model.log_likelihood(x, y)
