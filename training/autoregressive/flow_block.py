"""One flow block: an autoregressive affine transform of a token sequence (the reference's MetaBlock).

The sequence comes in block order; the model reverses it where needed.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from starflow.training.autoregressive.config import BlockConfig
from starflow.training.layers.dropout import EmbeddingDropout
from starflow.training.layers.transformer import KVCache, Layer, rms_norm_if

SOFTPLUS_SHIFT = 0.541324854612918  # its softplus is 1, so a = 0 leaves a token as it is

Rotation = tuple[Tensor, Tensor]


class Normalised(NamedTuple):
    """A block's sequence in the normalising direction."""

    z: Tensor  # [B, T, D] (x - mu) / sigma, block order
    log_det: Tensor  # [B, T, D] -log sigma, block order
    raw: Tensor  # [B, T, 2D] (or D) the network's [a, mu] after soft clip, before any shift
    condition: Tensor | None  # [B, m, channels] final-normed condition tokens, or None


class Context(NamedTuple):
    """What a block reads besides its tokens."""

    condition: Tensor | None  # [rows, m, width] condition tokens, for a block that has a prefix
    class_vector: Tensor | None  # [rows, 1, channels], for a block conditioned by class
    rotation: Rotation | None  # cos and sin, [m + T, head_dim / 2] each
    temperature: Tensor | None = None  # [rows]; attention logits are divided by it in decoding

    @property
    def prefix(self) -> int:
        """Number m of condition tokens."""
        return 0 if self.condition is None else self.condition.shape[1]


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
        self.final_norm = rms_norm_if(block.final_norm, block.channels)
        self.embedding_dropout = EmbeddingDropout()

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

    def raw(self, h: Tensor) -> Tensor:
        """The network's output after soft clip, [..., 2D] (or D), float32."""
        out: Tensor = self.proj_out(self.final_norm(h)).float()
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
        """Logarithm of `sigma`: a itself, unless the scale is a softplus."""
        return torch.log(self.sigma(a)) if self.block.scale == "softplus" else a

    def forward(self, x: Tensor, context: Context) -> Normalised:
        """Normalise a whole sequence x [B, T, D], in block order, in one pass."""
        raw, text = self.network(self.opened(x), context)
        a, mu = self.of_tokens(raw)
        return Normalised((x - mu) / self.sigma(a), -self.log_sigma(a), raw, text)

    def opened(self, x: Tensor) -> Tensor:
        """The network's inputs for a sequence x [B, T, D]: token t is read for token t + 1, or for itself if none opens it."""
        if not self.block.start_token:
            return x
        return torch.cat([self.sos_embed.to(x.dtype).expand(x.shape[0], 1, -1), x[:, :-1]], dim=1)

    def of_tokens(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """a and mu of every token, [B, T, D] each, from what the network says of `opened` inputs.

        Without a start token, the first token has a and mu 0 and passes unchanged.
        """
        a, mu = self.scale_and_shift(raw)
        if self.block.start_token:
            return a, mu
        return functional.pad(a[:, :-1], (0, 0, 1, 0)), functional.pad(mu[:, :-1], (0, 0, 1, 0))

    def network(
        self, inputs: Tensor, context: Context, states: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the transformer over a whole sequence [B, T, D], the start token included, without a cache.

        Args:
            states: Gets the hidden states of the tokens after each layer, [B, T, channels].

        Returns:
            [B, T, output_dim] `raw`, and the final-normed condition tokens [B, m, channels] or None.
        """
        h, prefix = self.embed_tokens(inputs, 0, context.class_vector), context.prefix
        if context.condition is not None:
            h = torch.cat([self.embed_condition(context.condition), h], dim=1)
        h = self.embedding_dropout(h)
        for layer in self.attn_blocks:
            h = layer(h, context.rotation)
            if states is not None:
                states.append(h[:, prefix:])
        return self.raw(h[:, prefix:]), None if context.condition is None else self.final_norm(h[:, :prefix])

    def caches(self, rows: int, length: int, context: Context) -> list[KVCache]:
        """One cache a layer for `rows` sequences of `length` tokens, with the condition prefilled."""
        caches = [
            KVCache.empty(self.block, rows, context.prefix + length, self.proj_in.weight) for _ in self.attn_blocks
        ]
        if context.condition is not None:
            self._decode(self.embed_condition(context.condition), 0, context, caches)
        return caches

    def step(self, previous: Tensor, index: int, context: Context, caches: list[KVCache]) -> tuple[Tensor, Tensor]:
        """Predict a and mu from `previous` [rows, S, D], the inputs at sequence indices `index`.., [rows, S, D] each."""
        h = self.embed_tokens(previous, index, context.class_vector)
        return self.scale_and_shift(self.raw(self._decode(h, context.prefix + index, context, caches)))

    def _decode(self, h: Tensor, position: int, context: Context, caches: list[KVCache]) -> Tensor:
        rotation = context.rotation
        if rotation is not None:
            end = position + h.shape[1]
            rotation = (rotation[0][position:end], rotation[1][position:end])
        for layer, cache in zip(self.attn_blocks, caches, strict=True):
            h = layer(h, rotation, cache, position, context.temperature)
        return h
