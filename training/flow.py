"""What a flow of either family offers: noise in, samples out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Flow(nn.Module, ABC):
    """A trained map between noise and data."""

    num_classes: int = 0  # of a class model; as a label, this number stands for "no class"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def parameter_count(self) -> int:
        """Number of trainable values."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def unused_buffers(self) -> Mapping[str, tuple[int, ...] | None]:
        """Buffers that published weights carry and this model does not read: pattern of the name -> shape, None: any."""
        return {}

    @abstractmethod
    def noise_shape(self, batch: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """Shape of the noise `reverse` takes; height and width in pixels, the training size by default."""

    @abstractmethod
    def encode_labels(self, labels: Tensor) -> Tensor:
        """Class labels [B] int64, 0 to `num_classes`, as the condition of this family."""

    @abstractmethod
    def reverse(
        self, noise: Tensor, y: Tensor | None = None, y_null: Tensor | None = None, *, guidance: float = 0.0
    ) -> Tensor:
        """Sample: standard normal noise of `noise_shape` to data; guidance needs the null condition."""

    def sample_labels(self, noise: Tensor, labels: Tensor, guidance: float = 0.0) -> Tensor:
        """Sample a class model: noise of `noise_shape`, labels [B] int64 -> data."""
        null = self.encode_labels(torch.full_like(labels, self.num_classes))
        return self.reverse(noise, self.encode_labels(labels), null, guidance=guidance)


def gaussian_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I) summed over all but the first axis: [B, ...] -> [B], nats."""
    return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
