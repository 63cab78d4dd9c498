"""The transformer layer of both families: attention and MLP on a pre-norm residual stream.

Module and parameter names are those of the published checkpoints.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from starflow.training.layers.layer_config import LayerConfig
from starflow.training.layers.rotary import rotate

Modulation = tuple[Tensor, Tensor]  # scale and shift, [rows, 1, width] each


@dataclass
class KVCache:
    """Keys (after rotary) and values of one layer, [rows, kv_heads, capacity, head_dim] each."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, layer: LayerConfig, rows: int, capacity: int, like: Tensor) -> "KVCache":
        shape = (rows, layer.kv_heads, capacity, layer.head_dim)
        return cls(like.new_zeros(shape), like.new_zeros(shape))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * (1 + weight), computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return (wide * (1.0 + self.weight.float())).to(x.dtype)


def modulate(x: Tensor, modulation: Modulation | None) -> Tensor:
    """Adaptive norm (Peebles and Xie, 2023, section 3.2): x * (1 + scale) + shift, after a norm of x [rows, S, width]."""
    if modulation is None:
        return x
    scale, shift = modulation
    return x * (1 + scale) + shift


def _norm(layer: LayerConfig) -> nn.Module:
    return RMSNorm(layer.channels) if layer.norm == "rms_norm" else nn.LayerNorm(layer.channels)


def rms_norm_if(wanted: bool, width: int) -> nn.Module:
    """An `RMSNorm`, or nothing."""
    return RMSNorm(width) if wanted else nn.Identity()


class Attention(nn.Module):
    """Self-attention, causal or not, with grouped queries, rotary positions and an optional cache."""

    def __init__(self, layer: LayerConfig) -> None:
        super().__init__()
        self.layer = layer
        self.dropout = 0.0  # share of the weights that training leaves out
        self.norm = _norm(layer)
        self.qkv = nn.Linear(layer.channels, (layer.heads + 2 * layer.kv_heads) * layer.head_dim, bias=layer.bias)
        self.proj = nn.Linear(layer.heads * layer.head_dim, layer.channels, bias=layer.bias)
        self.query_norm = rms_norm_if(layer.qk_norm, layer.head_dim)
        self.key_norm = rms_norm_if(layer.qk_norm, layer.head_dim)
        self.post_norm = rms_norm_if(layer.post_norm, layer.channels)

    def forward(
        self,
        h: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        cache: KVCache | None = None,
        position: int = 0,
        temperature: Tensor | None = None,
        modulation: Modulation | None = None,
    ) -> Tensor:
        """Attend from `h` [rows, S, channels] to itself and, with a cache, to everything before `position`.

        Args:
            rotation: cos and sin, [S, head_dim / 2] each, of the S positions.
            cache: Written in place from `position` on, the position of the first token of `h`.
            temperature: [rows]; logits are divided by it.
            modulation: Applied after the norm.
        """
        layer = self.layer
        rows, length, _ = h.shape
        heads = self.qkv(modulate(self.norm(h), modulation)).view(rows, length, -1, layer.head_dim).transpose(1, 2)
        q, k, v = heads.split([layer.heads, layer.kv_heads, layer.kv_heads], dim=1)
        q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q = rotate(q, *rotation, half=layer.half_rotation)
            k = rotate(k, *rotation, half=layer.half_rotation)
        if temperature is not None:
            q = q / temperature.view(-1, 1, 1, 1)
        if cache is not None:
            end = position + length
            cache.keys[:, :, position:end] = k
            cache.values[:, :, position:end] = v
            k, v = cache.keys[:, :, :end], cache.values[:, :, :end]
        mask = None
        if cache is not None and length > 1:
            mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=h.device).tril(position)
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=layer.causal and cache is None,
            enable_gqa=layer.heads != layer.kv_heads,
        )
        return cast(Tensor, self.post_norm(self.proj(out.transpose(1, 2).reshape(rows, length, -1))))


class MLP(nn.Module):
    """Linear, exact GELU, linear; or, gated, down(tanhGELU(gate(x)) * up(x))."""

    def __init__(self, layer: LayerConfig) -> None:
        super().__init__()
        self.gated = layer.gated_mlp
        self.dropout = nn.Dropout(0.0)
        self.norm = _norm(layer)
        if layer.gated_mlp:
            self.gate_proj = nn.Linear(layer.channels, layer.hidden, bias=layer.bias)
            self.up_proj = nn.Linear(layer.channels, layer.hidden, bias=layer.bias)
            self.down_proj = nn.Linear(layer.hidden, layer.channels, bias=layer.bias)
        else:
            self.main = nn.Sequential(
                nn.Linear(layer.channels, layer.hidden, bias=layer.bias),
                nn.GELU(),
                nn.Linear(layer.hidden, layer.channels, bias=layer.bias),
            )
        self.post_norm = rms_norm_if(layer.post_norm, layer.channels)

    def forward(self, h: Tensor, modulation: Modulation | None = None) -> Tensor:
        x = modulate(self.norm(h), modulation)
        if self.gated:
            hidden = functional.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
            x = self.down_proj(self.dropout(hidden))
        else:
            first, activation, last = self.main
            x = last(self.dropout(activation(first(x))))
        return cast(Tensor, self.post_norm(x))


class Layer(nn.Module):
    """h += attention(h); h += mlp(h)."""

    def __init__(self, layer: LayerConfig) -> None:
        super().__init__()
        self.attention = Attention(layer)
        self.mlp = MLP(layer)

    def forward(
        self,
        h: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        cache: KVCache | None = None,
        position: int = 0,
        temperature: Tensor | None = None,
    ) -> Tensor:
        h = h + self.attention(h, rotation, cache, position, temperature)
        return cast(Tensor, h + self.mlp(h))
