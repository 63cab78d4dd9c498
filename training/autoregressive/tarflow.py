"""TARFlow (Zhai et al., ICML 2025): learned positions, class embeddings, linear guidance, learned prior."""

import torch
from torch import Tensor

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.training.autoregressive.config import BlockConfig, TarflowConfig
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow


class Tarflow(AutoregressiveFlow):
    """Transformer autoregressive flow; noise and z are tokens [B, T, D]."""

    config: TarflowConfig
    channel_first = True
    var: Tensor

    def __init__(self, config: TarflowConfig) -> None:
        super().__init__(config)
        self.num_classes = config.num_classes
        self.register_buffer("var", torch.ones(self.side**2, config.token_dim))

    @property
    def sqrt_prior(self) -> Tensor:  # type: ignore[override]
        """Standard deviation of the prior, [T, D]."""
        return self.var.sqrt()

    @torch.no_grad()
    def update_prior(self, z: Tensor, decay: float = 0.9) -> None:
        """Let the prior's variance follow the data: var <- 0.9 var + 0.1 mean over the batch of z^2, z [B, T, D]."""
        self.var.lerp_(z.square().mean(0), 1 - decay)

    def noise_shape(self, batch: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return (batch, *self.var.shape)

    def encode_labels(self, labels: Tensor) -> Tensor:
        """Class ids [B] int64; the null class becomes -1, the mean embedding."""
        return torch.where(labels == self.num_classes, -1, labels)

    def rotation(
        self, block: BlockConfig, height: int, width: int, prefix: int, device: torch.device | None = None
    ) -> Tensor | None:
        return None

    def guide(
        self, block: FlowBlock, a: Tensor, mu: Tensor, weight: Tensor, guidance: Guidance
    ) -> tuple[Tensor, Tensor]:
        """Linear guidance on log-scale and shift: c + w (c - u)."""
        a_c, a_u = a.chunk(2)
        mu_c, mu_u = mu.chunk(2)
        a = a_c + weight * (a_c - a_u) if guidance.scale else a_c
        mu = mu_c + weight * (mu_c - mu_u) if guidance.shift else mu_c
        return block.sigma(a), mu

    def guides(self, block: BlockConfig, guidance: Guidance) -> bool:
        return guidance.weight > 0

    def _temperature(self, value: float, batch: int, guided: bool) -> Tensor | None:
        if value == 1.0 or not guided:
            return None
        ones = torch.ones(batch, device=self.device)
        return torch.cat([ones, value * ones])

    def _shape_noise(self, tokens: Tensor, height: int, width: int) -> Tensor:
        return tokens

    def _noise_tokens(self, noise: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if tuple(noise.shape[1:]) != tuple(self.var.shape):
            raise UsageError(
                f"noise of shape {tuple(noise.shape)}: this model takes [B, {', '.join(map(str, self.var.shape))}]"
            )
        return noise * self.sqrt_prior, (self.config.img_size, self.config.img_size)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        size = self.config.img_size
        if tuple(x.shape[2:]) != (size, size):
            raise UsageError(f"data of shape {tuple(x.shape)}: this model takes {size} x {size} images only")
        return super()._grid(x)

    def _check_condition(self, y: Tensor | None, batch: int) -> None:
        if y is not None and (self.config.num_classes == 0 or y.shape != (batch,)):
            classes = self.config.num_classes
            wanted = f"class ids [{batch}] below {classes}" if classes else "no condition"
            raise UsageError(f"condition of shape {tuple(y.shape)}: this model takes {wanted}")
