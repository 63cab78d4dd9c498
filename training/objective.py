"""What a step of the trainer minimises, for either family."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from starflow.training.autoregressive.model import FlowModel
from starflow.training.autoregressive.tarflow import Tarflow
from starflow.training.flow import Flow

AnyFlow = TypeVar("AnyFlow", bound=Flow)


class Objective(ABC, Generic[AnyFlow]):
    """The loss of a batch, and the likelihood the result is judged by.

    Attributes:
        figures: Scalars of the last step beside its loss, by the name they have in log.jsonl.
        judged: Held-out samples whose likelihood is worth its time; None: all.
    """

    judged: int | None = None

    def __init__(self) -> None:
        self.figures: dict[str, Tensor] = {}

    @abstractmethod
    def losses(
        self, network: Callable[..., Any], x: Tensor, y: Tensor | None, generator: torch.Generator, size: int
    ) -> Iterator[Tensor]:
        """Yield the mean loss of every part of a batch; the caller runs each backward before it asks for the next.

        Args:
            network: The model's forward pass.
            x: The whole batch, [B, ...] float32.
            y: Its condition, or None.
            generator: The random numbers of this step.
            size: Samples in a part.
        """

    @abstractmethod
    def log_likelihood(self, model: AnyFlow, x: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        """log p(x | y) in nats, [B]."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs to know of the steps before."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""


class MaximumLikelihood(Objective[FlowModel]):
    """The exact likelihood of an autoregressive flow: the loss is the model's own."""

    def __init__(self, model: FlowModel) -> None:
        super().__init__()
        # Without scales, the prior has to learn them.
        self._learned_prior = model if isinstance(model, Tarflow) and not model.config.nvp else None

    def losses(
        self, network: Callable[..., Any], x: Tensor, y: Tensor | None, generator: torch.Generator, size: int
    ) -> Iterator[Tensor]:
        z = []
        for part in torch.arange(len(x), device=x.device).split(size):
            out = network(x[part], None if y is None else y[part])
            z.append(out.z.detach())
            yield out.loss
        if self._learned_prior is not None:
            self._learned_prior.update_prior(torch.cat(z))

    def log_likelihood(self, model: FlowModel, x: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        return model.log_likelihood(x, y)
