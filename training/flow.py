"""What a flow of either family offers: noise in, samples out, and the likelihood of data."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from starflow.training.config import ModelConfig


class Flow(nn.Module, ABC):
    """A trained map between noise and data."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @abstractmethod
    def noise_shape(self, batch: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """Shape of the noise `reverse` takes; height and width in pixels, the training size by default."""

    @abstractmethod
    def encode_labels(self, labels: Tensor) -> Tensor:
        """Class labels [B] int64 (id == number of classes is the null class) as the condition of this family."""

    @abstractmethod
    def reverse(
        self, noise: Tensor, y: Tensor | None = None, y_null: Tensor | None = None, *, guidance: float = 0.0
    ) -> Tensor:
        """Sample: standard normal noise of `noise_shape` to data; guidance needs the null condition."""

    @abstractmethod
    def sample_labels(self, noise: Tensor, labels: Tensor, guidance: float = 0.0) -> Tensor:
        """Sample a class model: noise of `noise_shape`, labels [B] int64 -> data."""


def build_flow(config: "ModelConfig") -> Flow:
    """The model of a configuration, of either family, freshly initialised."""
    from starflow.training.autoregressive.model import build_model
    from starflow.training.continuous.model import build_velocity

    return build_velocity(config) if config.family == "continuous-flow" else build_model(config)
