"""One flow block: an autoregressive affine transform of a token sequence (the reference's MetaBlock).

The sequence is given in block order; reversing it is the model's business.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from starflow.training.autoregressive.config import BlockConfig
from starflow.training.layers.transformer import KVCache, Layer, RMSNorm

SOFTPLUS_SHIFT = 0.541324854612918  # softplus of it is 1: a = 0 leaves a token as it is

Rotation = tuple[Tensor, Tensor]


class Normalised(NamedTuple):
    """A block's sequence in the normalising direction.

    Attributes:
        z: [B, T, D] (x - mu) / sigma, block order.
        log_det: [B, T, D] -log sigma, block order.
        raw: [B, T, 2D] (or D) the network's [a, mu] after soft clip, before any shift.
        condition: [B, m, channels] final-normed condition tokens, or None.
    """

    z: Tensor
    log_det: Tensor
    raw: Tensor
    condition: Tensor | None


@dataclass
class DecodingState:
    """Everything one block carries from step to step while it samples."""

    caches: list[KVCache]
    rotation: Rotation | None
    class_vector: Tensor | None
    temperature: Tensor | None


class FlowBlock(nn.Module):
    """A causal transformer that predicts scale and shift of every token from the tokens before it."""

    def __init__(self, block: BlockConfig, sequence_length: int) -> None:
        super().__init__()
        self.block = block
        self.proj_in = nn.Linear(block.token_dim, block.channels)
        self.proj_out = nn.Linear(block.channels, block.output_dim)
        nn.init.zeros_(self.proj_out.weight)  # an untrained block is an elementwise affine map
        if block.start_token:
            self.sos_embed = nn.Parameter(torch.randn(1, 1, block.token_dim))
        if block.positions == "learned":
            self.pos_embed = nn.Parameter(torch.randn(sequence_length, block.channels) * 1e-2)
        if block.project_condition:
            self.proj_txt = nn.Linear(block.condition_width, block.channels)
        if block.condition == "class":
            self.class_embed = nn.Parameter(torch.randn(block.condition_width, 1, block.channels) * 1e-2)
        self.attn_blocks = nn.ModuleList(Layer(block) for _ in range(block.layers))
        if block.final_norm:
            self.final_norm = RMSNorm(block.channels)

    def class_vectors(self, labels: Tensor | None, rows: int) -> Tensor:
        """Class embeddings, [rows, 1, channels]; the mean embedding where `labels` [rows] int64 is None or negative."""
        mean = self.class_embed.mean(dim=0)
        if labels is None:
            return mean.expand(rows, 1, -1)
        return torch.where((labels < 0).view(-1, 1, 1), mean, self.class_embed[labels])

    def embed_condition(self, condition: Tensor) -> Tensor:
        """Condition tokens [B, m, width] as hidden states [B, m, channels]."""
        hidden: Tensor = self.proj_txt(condition) if self.block.project_condition else condition
        return hidden

    def embed_tokens(self, tokens: Tensor, first: int, class_vector: Tensor | None) -> Tensor:
        """Tokens [B, S, D] standing at sequence indices `first`.. as hidden states [B, S, channels]."""
        h: Tensor = self.proj_in(tokens)
        if self.block.positions == "learned":
            table = self.pos_embed.flip(0) if self.block.reversed else self.pos_embed
            h = h + table[first : first + tokens.shape[1]]
        return h if class_vector is None else h + class_vector

    def _final(self, h: Tensor) -> Tensor:
        final: Tensor = self.final_norm(h) if self.block.final_norm else h
        return final

    def raw(self, h: Tensor) -> Tensor:
        """The network's output after soft clip, [..., 2D] (or D), float32."""
        out: Tensor = self.proj_out(self._final(h)).float()
        clip = self.block.soft_clip
        return clip * torch.tanh(out / clip) if clip > 0 else out

    def scale_and_shift(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Split `raw` into a (log-scale before its nonlinearity) and mu, [..., D] each."""
        if self.block.scale == "unit":
            return torch.zeros_like(raw), raw
        a, mu = raw.chunk(2, dim=-1)
        return a, mu

    def sigma(self, a: Tensor) -> Tensor:
        """Standard deviation from a: softplus(a + 0.5413) or exp(a)."""
        return functional.softplus(a + SOFTPLUS_SHIFT) if self.block.scale == "softplus" else torch.exp(a)

    def log_sigma(self, a: Tensor) -> Tensor:
        """Logarithm of `sigma`, without the detour where it is a itself."""
        return torch.log(self.sigma(a)) if self.block.scale == "softplus" else a

    def forward(
        self, x: Tensor, condition: Tensor | None, class_vector: Tensor | None, rotation: Rotation | None
    ) -> Normalised:
        """Normalise a whole sequence in one pass.

        Args:
            x: [B, T, D] in block order.
            condition: [B, m, width] condition tokens, for a block that has a prefix.
            class_vector: [B, 1, channels], for a block conditioned by class.
            rotation: cos and sin, [m + T, head_dim / 2] each.
        """
        inputs = x
        if self.block.start_token:
            inputs = torch.cat([self.sos_embed.to(x.dtype).expand(x.shape[0], 1, -1), x[:, :-1]], dim=1)
        raw, text = self.network(inputs, condition, class_vector, rotation)
        a, mu = self.scale_and_shift(raw)
        if not self.block.start_token:
            a, mu = (functional.pad(value[:, :-1], (0, 0, 1, 0)) for value in (a, mu))
        return Normalised(
            z=(x - mu) / self.sigma(a),
            log_det=-self.log_sigma(a),
            raw=raw,
            condition=text,
        )

    def network(
        self, inputs: Tensor, condition: Tensor | None, class_vector: Tensor | None, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the transformer over a whole sequence, without a cache.

        Args:
            inputs: [B, T, D], the start token included where there is one.
            condition, class_vector, rotation: See `forward`.

        Returns:
            [B, T, output_dim] `raw`, and the final-normed condition tokens [B, m, channels] or None.
        """
        h = self.embed_tokens(inputs, 0, class_vector)
        prefix = 0
        if condition is not None:
            prefix = condition.shape[1]
            h = torch.cat([self.embed_condition(condition), h], dim=1)
        for layer in self.attn_blocks:
            h = layer(h, rotation)
        return self.raw(h[:, prefix:]), self._final(h[:, :prefix]) if condition is not None else None

    def begin(
        self,
        rows: int,
        length: int,
        condition: Tensor | None,
        class_vector: Tensor | None,
        rotation: Rotation | None,
        temperature: Tensor | None,
    ) -> DecodingState:
        """Empty caches for `rows` sequences of `length` tokens, with the condition [rows, m, width] prefilled."""
        prefix = 0 if condition is None else condition.shape[1]
        caches = [KVCache.empty(self.block, rows, prefix + length, self.proj_in.weight) for _ in self.attn_blocks]
        state = DecodingState(caches, rotation, class_vector, temperature)
        if condition is not None:
            self._layers(self.embed_condition(condition), 0, state)
        return state

    def _layers(self, h: Tensor, position: int, state: DecodingState) -> Tensor:
        rotation = state.rotation
        if rotation is not None:
            end = position + h.shape[1]
            rotation = (rotation[0][position:end], rotation[1][position:end])
        for layer, cache in zip(self.attn_blocks, state.caches, strict=True):
            h = layer(h, rotation, cache, position, state.temperature)
        return h

    def step(self, previous: Tensor, index: int, prefix: int, state: DecodingState) -> tuple[Tensor, Tensor]:
        """Predict a and mu from `previous` [rows, S, D], the inputs at sequence indices `index`.., [rows, S, D] each."""
        h = self.embed_tokens(previous, index, state.class_vector)
        return self.scale_and_shift(self.raw(self._layers(h, prefix + index, state)))
