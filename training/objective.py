"""What a step of the trainer minimises, for either family."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from starflow.training.flow import Flow

AnyFlow = TypeVar("AnyFlow", bound=Flow)


class Objective(ABC, Generic[AnyFlow]):
    """The loss of a batch, and the likelihood the result is judged by."""

    judged: int | None = None  # number of held-out samples whose likelihood is computed; None: all
    # Whether the loss is the negative log-likelihood per dimension, less log(2 pi) / 2, in nats.
    loss_is_likelihood: bool = False

    def __init__(self) -> None:
        self.figures: dict[str, Tensor] = {}  # scalars of the last step besides its loss, by their names in log.jsonl
        self.memory: dict[str, Tensor] = {}  # what a resumed run needs to know of the steps before it

    def prepare(self, draw: Callable[[int], Tensor], seed: int) -> None:
        """Learn what the first step needs; called once, before it.

        Args:
            draw: Data of a batch, [B, ...] float32, by its index.
            seed: Of everything random in it.
        """

    def restore(self, memory: Mapping[str, Tensor]) -> None:
        """Take up the memory of a run that was stopped."""
        self.memory.update(memory)

    @abstractmethod
    def losses(
        self, network: Callable[..., Any], x: Tensor, y: Tensor | None, generator: torch.Generator, size: int
    ) -> Iterator[Tensor]:
        """Yield the mean loss of every part of a batch; the caller runs each backward before it asks for the next.

        Args:
            network: The model's forward pass.
            x: The whole batch, [B, ...] float32.
            size: Samples in a part.
        """

    @abstractmethod
    def log_likelihood(self, model: AnyFlow, x: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        """log p(x | y) in nats, [B]."""
