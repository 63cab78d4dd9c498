"""What a step of the trainer minimises, for either family."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from starflow.training.flow import Flow

AnyFlow = TypeVar("AnyFlow", bound=Flow)


@dataclass(frozen=True)
class Share:
    """Which parts of a batch are trained on here: every `count`-th part of `size` samples, from part `first`."""

    size: int
    first: int = 0
    count: int = 1

    def of(self, batch: int, device: torch.device) -> tuple[Tensor, ...]:
        """The indices of the parts of a batch of B samples."""
        return torch.arange(batch, device=device).split(self.size)[self.first :: self.count]


class Objective(ABC, Generic[AnyFlow]):
    """The loss of a batch, and the likelihood the result is judged by."""

    judged: int | None = None  # number of held-out samples whose likelihood is computed; None: all
    # Whether the loss is the negative log-likelihood per dimension, less log(2 pi) / 2, in nats.
    loss_is_likelihood: bool = False

    def __init__(self) -> None:
        self.figures: dict[str, Tensor] = {}  # scalars of the last step besides its loss, by their names in log.jsonl
        self.process_mean: Callable[[Tensor], Tensor] = lambda value: value  # mean over all processes
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
        self, network: Callable[..., Any], x: Tensor, y: Tensor | None, generator: torch.Generator, share: Share
    ) -> Iterator[Tensor]:
        """Yield the mean loss of every part of a batch; the caller runs each backward before it asks for the next.

        Args:
            network: The model's forward pass.
            x: The whole batch, [B, ...] float32.
            share: The parts of this process; pairs and weights are those of the whole batch.
        """

    @abstractmethod
    def log_likelihood(self, model: AnyFlow, x: Tensor, y: Tensor | None, generator: torch.Generator) -> Tensor:
        """log p(x | y) in nats, [B]."""
