"""A small diffusion transformer: the velocity field of images.

Patches are tokens; attention runs both ways; time and condition enter through adaptive norms whose gates begin at zero
(Peebles and Xie, ICCV 2023). Text tokens stand in front of the image's, as in the other family's flow blocks.

The forward pass, and the parameters it reads. Batch B, tokens T = (H / p) (W / p), token width D = C p p, width W = `channels`:

    e    = time_embed.2(silu(time_embed.0(time_features(t))))         [B, W]    time_embed.{0,2}.{weight,bias}
    e    = e + class_embed[y]                          class models   [B, W]    class_embed [num_classes + 1, W], last: null
    s    = proj_txt(y)                                 text models    [B, m, W] proj_txt.{weight,bias}
    e    = e + mean over m of s                        text models
    c    = silu(e)                                                    [B, W]
    h    = proj_in(patchify(x))                                       [B, T, W] proj_in.{weight,bias}; channel fastest
    h    = [s, h]                                      text models    [B, m + T, W]
    for each layer i:
        k1, b1, g1, k2, b2, g2 = layers.i.modulation(c)               [B, W] each, in this order, broadcast over tokens
        h = h + g1 * attention(rmsnorm(h; layers.i.attention.norm) * (1 + k1) + b1)
        h = h + g2 * mlp(rmsnorm(h; layers.i.mlp.norm) * (1 + k2) + b2)
    k, b = final_modulation(c)                                        [B, W] each
    v    = proj_out(rmsnorm(h[:, m:]; final_norm) * (1 + k) + b)      [B, T, D], then unpatchify

`attention` and `mlp` are those of `starflow.training.layers.transformer` (`attention.{qkv,proj}`, `mlp.main.{0,2}`, exact GELU), with no
mask: qkv gives [queries, keys, values], W / head_dim heads each; queries and keys are turned by `axis_angles` over row and
column (and the third axis for text), pairs 2k and 2k + 1. rmsnorm(h; w) = h / sqrt(mean(h^2) + 1e-6) * (1 + w), in float32.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from starflow.runtime.plain.errors import UsageError
from starflow.training.continuous.config import ContinuousTransformerConfig
from starflow.training.continuous.model import ContinuousFlow, TimeEmbedding, time_features
from starflow.training.layers.dropout import EmbeddingDropout
from starflow.training.layers.layer_config import LayerConfig
from starflow.training.layers.rotary import axis_angles
from starflow.training.layers.tokens import patchify, unpatchify
from starflow.training.layers.transformer import MLP, Attention, RMSNorm, modulate


def _zero_linear(width: int, out: int) -> nn.Linear:
    """A projection that says nothing until it has learned to."""
    linear = nn.Linear(width, out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class ModulatedLayer(nn.Module):
    """h += gate * attention(h); h += gate * mlp(h), with both norms modulated and both gates zero at first."""

    def __init__(self, layer: LayerConfig) -> None:
        super().__init__()
        self.attention = Attention(layer)
        self.mlp = MLP(layer)
        self.modulation = _zero_linear(layer.channels, 6 * layer.channels)

    def forward(self, h: Tensor, c: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Run the layer on h [B, S, channels], with c [B, channels] and cos and sin [S, head_dim / 2] of the rotation."""
        k1, b1, g1, k2, b2, g2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        h = h + g1 * self.attention(h, rotation, modulation=(k1, b1))
        result: Tensor = h + g2 * self.mlp(h, (k2, b2))
        return result


class ContinuousTransformer(ContinuousFlow):
    """v(x, t, y) of images [B, C, H, W]; the module's docstring has the forward pass, line by line."""

    config: ContinuousTransformerConfig

    def __init__(self, config: ContinuousTransformerConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        width = config.channels
        self.time_embed = TimeEmbedding(width)
        if config.num_classes:
            self.class_embed = nn.Parameter(0.02 * torch.randn(config.num_classes + 1, width))
        if config.txt_size:
            self.proj_txt = nn.Linear(config.txt_dim, width)
        self.proj_in = nn.Linear(config.token_dim, width)
        self.layers = nn.ModuleList(ModulatedLayer(config.layer) for _ in range(config.layers))
        self.embedding_dropout = EmbeddingDropout()
        self.final_norm = RMSNorm(width)
        self.final_modulation = _zero_linear(width, 2 * width)
        self.proj_out = _zero_linear(width, config.token_dim)

    def noise_shape(self, batch: int, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        size = self.config.img_size
        return (batch, self.config.in_channels, height or size, width or size)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        config = self.config
        grid = config.grid(x.shape)
        self._check_condition(y, len(x))
        h = self.proj_in(patchify(x, config.patch_size, channel_first=False))
        e, prefix = self.time_embed(time_features(t)), 0
        if config.num_classes and y is not None:
            e = e + self.class_embed[y]
        elif y is not None:
            text = self.proj_txt(y)
            e, prefix, h = e + text.mean(1), y.shape[1], torch.cat([text, h], dim=1)
        c = functional.silu(e)
        angles = axis_angles(
            *grid,
            config.side,
            head_dim=config.head_dim,
            text_model=config.txt_size > 0,
            text_tokens=prefix,
            device=x.device,
        )
        rotation = angles.cos(), angles.sin()
        h = self.embedding_dropout(h)
        for layer in self.layers:
            h = layer(h, c, rotation)
        scale, shift = self.final_modulation(c)[:, None].chunk(2, dim=-1)
        tokens = self.proj_out(modulate(self.final_norm(h[:, prefix:]), (scale, shift))).float()
        return unpatchify(tokens, config.patch_size, *x.shape[2:], channel_first=False)

    def _check_condition(self, y: Tensor | None, batch: int) -> None:
        config, found = self.config, "none" if y is None else f"{y.dtype} {tuple(y.shape)}"
        if config.num_classes:
            fits, wanted = y is not None and y.shape == (batch,), f"class ids [{batch}] up to {config.num_classes}"
        elif config.txt_size:
            fits = y is not None and y.ndim == 3 and len(y) == batch and y.shape[2] == config.txt_dim
            wanted = f"[{batch}, tokens, {config.txt_dim}]"
        else:
            fits, wanted = y is None, "none"
        if not fits:
            raise UsageError(f"condition {found}: this model takes {wanted}")
