"""STARFlow (Gu et al., NeurIPS 2025): text or class tokens in front, rotary positions, ratio guidance."""

import torch
from torch import Tensor
from torch.nn import functional

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.training.autoregressive.config import BlockConfig, StarflowConfig, denoiser_config
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.layers.rotary import axis_angles, line_angles
from starflow.training.layers.tokens import patchify


class Starflow(AutoregressiveFlow):
    """Deep-shallow autoregressive flow; see `AutoregressiveFlow` for the directions."""

    config: StarflowConfig
    channel_first = False

    def __init__(self, config: StarflowConfig) -> None:
        super().__init__(config)
        self.num_classes = config.txt_dim - 1 if config.txt_size else 0
        if config.learnable_self_denoiser:
            self.learnable_self_denoiser = FlowBlock(denoiser_config(config), self.side**2)

    def denoiser_prediction(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What the learned denoiser takes for noise in x, before it is scaled: see `denoise.learned_denoise`.

        Args:
            x: [B, C, H, W] float32.
            y: Text features [B, m, txt_dim], for a denoiser that reads them.

        Raises:
            UsageError: the model has no denoiser, or x or y do not fit it.
        """
        if not self.config.learnable_self_denoiser:
            raise UsageError("this model has no learned denoiser (learnable_self_denoiser)")
        grid, network = self._grid(x), self.learnable_self_denoiser
        condition = None
        if network.block.condition == "prefix":
            self._check_condition(y, len(x))
            condition = y
        tokens = patchify(x, self.config.patch_size, channel_first=self.channel_first)
        prediction, _ = network.network(tokens, self.context(network.block, grid, condition))
        return self._image(prediction, x.shape[2], x.shape[3])

    def noise_shape(self, batch: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        size = self.config.img_size
        return (batch, self.config.in_channels, height or size, width or size)

    def encode_labels(self, labels: Tensor) -> Tensor:
        """One one-hot token, [B, 1, txt_dim] float32."""
        return functional.one_hot(labels.reshape(-1, 1), self.config.txt_dim).float()

    def rotation(
        self, block: BlockConfig, height: int, width: int, prefix: int, device: torch.device | None = None
    ) -> Tensor | None:
        if block.positions == "line":
            return line_angles(prefix + height * width, head_dim=block.head_dim, device=device)
        if block.positions != "axes":
            return None
        patch, fine = block.patch, self.config.patch_size
        return axis_angles(
            height,
            width,
            self.length_scale * (fine / (patch[0] * patch[1]) ** 0.5),  # its own tokens along a side in training
            head_dim=block.head_dim,
            text_model=self.config.txt_size > 0,
            text_tokens=prefix,
            device=device,
        )

    def guide(
        self, block: FlowBlock, a: Tensor, mu: Tensor, weight: Tensor, guidance: Guidance
    ) -> tuple[Tensor, Tensor]:
        """Ratio guidance.

        With s = min(sigma_c / sigma_u, 1)^2 and d = 1 + w - w s, mu = ((1 + w) mu_c - w s mu_u) / d and sigma = sigma_c / sqrt(d).
        """
        sigma_c, sigma_u = block.sigma(a).chunk(2)
        mu_c, mu_u = mu.chunk(2)
        s = (sigma_c / sigma_u).clamp(max=1.0).square()
        d = 1 + weight - weight * s
        return sigma_c / d.sqrt(), ((1 + weight) * mu_c - weight * s * mu_u) / d

    def guides(self, block: BlockConfig, guidance: Guidance) -> bool:
        if guidance.annealed or not (guidance.scale and guidance.shift):
            raise UsageError("STARFlow's ratio guidance has a weight and top_only; the other options are TARFlow's")
        deep = block.index == len(self.block_configs) - 1
        return guidance.weight > 0 and block.condition == "prefix" and (deep or not guidance.top_only)

    def _temperature(self, value: float, batch: int, guided: bool) -> Tensor | None:
        return None if value == 1.0 else torch.full(((2 if guided else 1) * batch,), value, device=self.device)

    def _shape_noise(self, tokens: Tensor, height: int, width: int) -> Tensor:
        return self._image(tokens, height, width)

    def _noise_tokens(self, noise: Tensor) -> tuple[Tensor, tuple[int, int]]:
        self._grid(noise)
        tokens = patchify(noise, self.config.patch_size, channel_first=False)
        return tokens, (noise.shape[2], noise.shape[3])

    def _check_condition(self, y: Tensor | None, batch: int) -> None:
        width = self.config.txt_dim
        if self.config.txt_size == 0:
            if y is not None:
                raise UsageError("this model is unconditional; it takes no condition")
        elif y is None or y.ndim != 3 or len(y) != batch or y.shape[2] != width:
            found = "none" if y is None else str(tuple(y.shape))
            raise UsageError(f"condition of shape {found}: this model takes [{batch}, tokens, {width}]")
