"""The transformer inside a flow block: causal attention and MLP on a pre-norm residual stream.

Module and parameter names are those of the published checkpoints.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from starflow.training.config import BlockConfig
from starflow.training.rotary import rotate


@dataclass
class KVCache:
    """Keys (after rotary) and values of one layer, [rows, kv_heads, capacity, head_dim] each."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, block: BlockConfig, rows: int, capacity: int, like: Tensor) -> "KVCache":
        shape = (rows, block.kv_heads, capacity, block.head_dim)
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


def _norm(block: BlockConfig) -> nn.Module:
    return RMSNorm(block.channels) if block.norm == "rms_norm" else nn.LayerNorm(block.channels)


class Attention(nn.Module):
    """Causal self-attention with grouped queries, rotary positions and an optional cache."""

    def __init__(self, block: BlockConfig) -> None:
        super().__init__()
        self.block = block
        self.norm = _norm(block)
        self.qkv = nn.Linear(block.channels, (block.heads + 2 * block.kv_heads) * block.head_dim, bias=block.bias)
        self.proj = nn.Linear(block.heads * block.head_dim, block.channels, bias=block.bias)
        if block.qk_norm:
            self.query_norm = RMSNorm(block.head_dim)
            self.key_norm = RMSNorm(block.head_dim)
        if block.post_norm:
            self.post_norm = RMSNorm(block.channels)

    def forward(
        self,
        h: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        cache: KVCache | None = None,
        position: int = 0,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """Attend from `h` [rows, S, channels] to itself and, with a cache, to everything before `position`.

        Args:
            h: Residual stream.
            rotation: cos and sin, [S, head_dim / 2] each, of the S positions.
            cache: Written at `position` .. `position` + S, in place.
            position: First position of `h` in the cache.
            temperature: [rows]; logits are divided by it.
        """
        block = self.block
        rows, length, _ = h.shape
        heads = self.qkv(self.norm(h)).view(rows, length, -1, block.head_dim).transpose(1, 2)
        q, k, v = heads.split([block.heads, block.kv_heads, block.kv_heads], dim=1)
        if block.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotation is not None:
            q = rotate(q, *rotation, half=block.half_rotation)
            k = rotate(k, *rotation, half=block.half_rotation)
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
            q, k, v, attn_mask=mask, is_causal=cache is None, enable_gqa=block.heads != block.kv_heads
        )
        out = self.proj(out.transpose(1, 2).reshape(rows, length, -1))
        return cast(Tensor, self.post_norm(out)) if block.post_norm else cast(Tensor, out)


class MLP(nn.Module):
    """Linear, exact GELU, linear; or, gated, down(tanhGELU(gate(x)) * up(x))."""

    def __init__(self, block: BlockConfig) -> None:
        super().__init__()
        self.gated, self.post = block.gated_mlp, block.post_norm
        self.norm = _norm(block)
        if block.gated_mlp:
            self.gate_proj = nn.Linear(block.channels, block.hidden, bias=block.bias)
            self.up_proj = nn.Linear(block.channels, block.hidden, bias=block.bias)
            self.down_proj = nn.Linear(block.hidden, block.channels, bias=block.bias)
        else:
            self.main = nn.Sequential(
                nn.Linear(block.channels, block.hidden, bias=block.bias),
                nn.GELU(),
                nn.Linear(block.hidden, block.channels, bias=block.bias),
            )
        if block.post_norm:
            self.post_norm = RMSNorm(block.channels)

    def forward(self, h: Tensor) -> Tensor:
        x = self.norm(h)
        if self.gated:
            x = self.down_proj(functional.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
        else:
            x = self.main(x)
        return cast(Tensor, self.post_norm(x)) if self.post else cast(Tensor, x)


class Layer(nn.Module):
    """h += attention(h); h += mlp(h)."""

    def __init__(self, block: BlockConfig) -> None:
        super().__init__()
        self.attention = Attention(block)
        self.mlp = MLP(block)

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
