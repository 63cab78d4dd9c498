"""The velocity field of a continuous flow: what its networks share.

Time runs from noise at t = 0 to data at t = 1 (Lipman et al., ICLR 2023), and a sample follows dx/dt = v(x, t, y).
`reverse` integrates in plain PyTorch; it is the truth the exported graphs are held to.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from starflow.runtime.plain.errors import UsageError
from starflow.training.continuous.config import VelocityConfig, VelocityMlpConfig, VelocityTransformerConfig
from starflow.training.flow import Flow

TIME_FREQUENCIES = 32
HIGHEST_FREQUENCY = 100.0  # radians per unit of t; the field stays smooth in t, so that solvers keep their order
SAMPLING_STEPS = 50


def time_frequencies() -> Tensor:
    """w_k = 100^(k / 31) for k = 0 .. 31, [32] float32, radians per unit of time."""
    exponents = torch.arange(TIME_FREQUENCIES, dtype=torch.float32) / (TIME_FREQUENCIES - 1)
    return torch.exp(exponents * math.log(HIGHEST_FREQUENCY))


def time_features(t: Tensor) -> Tensor:
    """Fourier features of time, in float32: [cos(w_0 t), .., cos(w_31 t), sin(w_0 t), .., sin(w_31 t)].

    Args:
        t: [B] in [0, 1].

    Returns:
        [B, 64] float32.
    """
    angles = t.float()[:, None] * time_frequencies().to(t.device)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """Linear(64 -> width), SiLU, Linear(width -> width) on `time_features`: parameters `0.*` and `2.*`."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(2 * TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))


class VelocityNetwork(Flow):
    """v(x, t, y), and the flow it generates."""

    config: VelocityTransformerConfig | VelocityMlpConfig

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Velocity.

        Args:
            x: State at time t, [B, C, H, W] or [B, dimensions] float32.
            t: Times [B] float32 in [0, 1], one a sample.
            y: Condition: class ids [B] int64 (`num_classes` is the null class), text features [B, m, txt_dim] float32, or
                None for an unconditional network.

        Returns:
            dx/dt, shaped as x, float32.
        """

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes without the null class; 0 where the network is not conditioned on classes."""

    def encode_labels(self, labels: Tensor) -> Tensor:
        """The ids themselves; `num_classes` is the null class."""
        return labels

    def guided(self, x: Tensor, t: Tensor, y: Tensor | None, y_null: Tensor | None, guidance: float) -> Tensor:
        """Classifier-free guidance (Ho and Salimans, 2022): v_c + w (v_c - v_u), both from one run over 2B rows.

        Raises:
            UsageError: guidance without the two conditions.
        """
        if guidance == 0.0:
            return self(x, t, y)
        if y is None or y_null is None:
            raise UsageError("guidance needs a condition and y_null, the null condition")
        both = torch.cat([y, y_null.expand_as(y)])
        v_c, v_u = self(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return v_c + guidance * (v_c - v_u)

    @torch.no_grad()
    def reverse(
        self,
        noise: Tensor,
        y: Tensor | None = None,
        y_null: Tensor | None = None,
        *,
        guidance: float = 0.0,
        steps: int = SAMPLING_STEPS,
    ) -> Tensor:
        """Sample: integrate from t = 0 to 1 by `steps` equal midpoint steps.

        Args:
            noise: Standard normal noise of `noise_shape`, float32.
            y: Condition of every sample (see `forward`).
            y_null: Null condition, needed for guidance; broadcast over the batch.
            guidance: Weight w; 0 is the conditional field alone.
            steps: Two evaluations of the network each.

        Returns:
            Data, shaped as the noise.
        """
        x, h = noise, 1.0 / steps
        for index in range(steps):
            t = torch.full((len(x),), index * h, device=x.device)
            middle = x + 0.5 * h * self.guided(x, t, y, y_null, guidance)
            x = x + h * self.guided(middle, t + 0.5 * h, y, y_null, guidance)
        return x

    def sample_labels(self, noise: Tensor, labels: Tensor, guidance: float = 0.0) -> Tensor:
        null = torch.full_like(labels[:1], self.num_classes)
        return self.reverse(noise, labels, null, guidance=guidance)


def build_velocity(config: VelocityConfig) -> VelocityNetwork:
    """The velocity network of a configuration, freshly initialised."""
    from starflow.training.continuous.mlp import VelocityMLP
    from starflow.training.continuous.transformer import VelocityTransformer

    return VelocityMLP(config) if isinstance(config, VelocityMlpConfig) else VelocityTransformer(config)
