"""The best plain PyTorch can do with a step: static caches, a position that is a tensor, one function to compile.

What the runtime is compared with, besides the eager sampler: `torch.compile` can turn this step into one program, and on a GPU
into one CUDA graph, because no shape in it ever changes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from starflow.runtime.plain.guidance import Guidance
from starflow.training.autoregressive.flow_block import FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.layers.rotary import rotate
from starflow.training.layers.transformer import Layer


class StaticStep(nn.Module):
    """A single-token step of one guided flow block, in the block's own number type.

    Args:
        model: The model, for its guidance rule and rotary angles.
        block: A block with start token and rotary positions.
        batch: Images B; the network runs 2B rows.
        prefix: Condition tokens.
        weight: Guidance weight w.
    """

    def __init__(self, model: AutoregressiveFlow, block: FlowBlock, batch: int, prefix: int, weight: float) -> None:
        super().__init__()
        self.model, self.block, self.batch, self.prefix = model, block, batch, prefix
        config, like = block.block, block.proj_in.weight
        self.guidance, self.weight = Guidance(weight), torch.full((1, 1), weight, device=like.device)
        angles = model.rotation(config, model.side, model.side, prefix)
        assert angles is not None
        self.cos, self.sin = angles.cos().to(like), angles.sin().to(like)
        self.capacity = prefix + model.side**2
        shape = (2 * batch, config.kv_heads, self.capacity, config.head_dim)
        self.keys = [like.new_zeros(shape) for _ in block.attn_blocks]
        self.values = [like.new_zeros(shape) for _ in block.attn_blocks]
        self.slots = torch.arange(self.capacity, device=like.device)

    def forward(self, previous: Tensor, noise: Tensor, position: Tensor) -> Tensor:
        """Previous token [B, 1, D], noise [B, 1, D], position [1] int64 -> token [B, 1, D]."""
        first = position == self.prefix
        tokens = torch.where(first, self.block.sos_embed, previous)
        h = self._layers(self.block.proj_in(torch.cat([tokens, tokens])), position)
        a, mu = self.block.scale_and_shift(self.block.raw(h))
        sigma, mu = self.model.guide(self.block, a, mu, self.weight, self.guidance)
        return (noise * sigma + mu).to(previous.dtype)

    def prefill(self, condition: Tensor) -> None:
        """Write the condition tokens [2B, prefix, width] into the caches."""
        hidden = self.block.embed_condition(condition)
        for index in range(self.prefix):
            self._layers(hidden[:, index : index + 1], torch.tensor([index], device=hidden.device))

    def _layers(self, h: Tensor, position: Tensor) -> Tensor:
        rotation = self.cos[position], self.sin[position]
        mask = (self.slots <= position)[None]
        for layer, keys, values in zip(self.block.attn_blocks, self.keys, self.values, strict=True):
            assert isinstance(layer, Layer)
            h = h + self._attend(layer, h, keys, values, rotation, position, mask)
            h = h + layer.mlp(h)
        return h

    def _attend(
        self, layer: Layer, h: Tensor, keys: Tensor, values: Tensor,
        rotation: tuple[Tensor, Tensor], position: Tensor, mask: Tensor,
    ) -> Tensor:  # fmt: skip
        attention, config = layer.attention, self.block.block
        heads = attention.qkv(attention.norm(h)).view(len(h), 1, -1, config.head_dim).transpose(1, 2)
        q, k, v = heads.split([config.heads, config.kv_heads, config.kv_heads], dim=1)
        q = rotate(q, *rotation, half=config.half_rotation)
        k = rotate(k, *rotation, half=config.half_rotation)
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        projected: Tensor = attention.proj(out.transpose(1, 2).reshape(len(h), 1, -1))
        return projected


@torch.inference_mode()
def decode(step: StaticStep, forward: Callable[..., Tensor], noise: Tensor, condition: Tensor) -> Tensor:
    """Decode a block's sequence: noise [B, T, D] and condition [2B, prefix, width] -> tokens [B, T, D], block order.

    `forward` is `step`, or what `torch.compile` made of it.
    """
    step.prefill(condition)
    tokens = [torch.zeros_like(noise[:, :1])]
    for index in range(noise.shape[1]):
        position = torch.tensor([step.prefix + index], device=noise.device)
        tokens.append(forward(tokens[-1], noise[:, index : index + 1], position).clone())
    return torch.cat(tokens[1:], dim=1)
