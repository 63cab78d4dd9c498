"""An autoregressive flow: a stack of flow blocks with alternating token order (deep-shallow STARFlow, or TARFlow).

`forward` normalises, `reverse` samples in plain PyTorch. `reverse` is the truth the exported graphs are held to.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starflow.runtime.plain.errors import UsageError
from starflow.runtime.plain.guidance import Guidance
from starflow.runtime.plans.decode_plan import Jacobi
from starflow.training.autoregressive.config import AutoregressiveConfig, BlockConfig, block_configs
from starflow.training.autoregressive.flow_block import Context, FlowBlock
from starflow.training.flow import Flow, gaussian_log_density
from starflow.training.layers.tokens import patchify, unpatchify


@dataclass(frozen=True)
class FlowOutput:
    """The normalising direction."""

    z: Tensor  # latent noise, shaped as the data (STARFlow) or as tokens (TARFlow)
    # Per block, [B, T, D] -log sigma of its own tokens in block order; identity blocks have zeros [B].
    log_dets: tuple[Tensor, ...]
    # Tokens [B, T, D] of `patch_size` in natural order: the patched input, then every block's output.
    activations: tuple[Tensor, ...]
    # Per block, the network's [a, mu] before any shift; None for identity blocks.
    raws: tuple[Tensor | None, ...]
    condition: Tensor | None  # final-normed condition tokens of the deep block, or None
    loss: Tensor  # scalar; mean(z^2) / 2 minus the mean log-determinant: nats per dimension less log(2 pi) / 2
    # Its two parts.
    loss_z: Tensor
    loss_log_det: Tensor


@dataclass(frozen=True)
class JacobiTrace:
    """How one chunk converged."""

    block: int
    start: int
    size: int
    changes: tuple[float, ...]


# Makes the tokens of a flow block, [B, T, D] in block order, from noise of that shape, the condition of `forward`, and guidance
# weights [B].
BlockInverse = Callable[[Tensor, Tensor | None, Tensor], Tensor]


class AutoregressiveFlow(Flow):
    """What STARFlow and TARFlow share: the blocks, the two directions, the likelihood."""

    channel_first: bool  # order of a patch vector
    sqrt_prior: Tensor | None = None  # [T, D] standard deviation of the prior, where it is not 1

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        self.config = config
        self.block_configs: tuple[BlockConfig, ...] = block_configs(config)
        self.side = config.side
        self.length_scale: int = getattr(config, "pt_seq_len", None) or self.side
        self.blocks = nn.ModuleList(
            FlowBlock(block, math.prod(block.grid(config.img_size, config.img_size))) if block.layers else nn.Identity()
            for block in self.block_configs
        )

    @property
    def unused_buffers(self) -> Mapping[str, tuple[int, ...] | None]:
        length = self.length_scale**2
        rows = length + getattr(self.config, "txt_size", 0)
        mask = (rows, rows) if self.config.block_patch_sizes is None else None
        return {"var": (length, self.config.token_dim), "*.attn_mask": mask, "feat_rope.freqs_*": None}

    @abstractmethod
    def rotation(
        self, block: BlockConfig, height: int, width: int, prefix: int, device: torch.device | None = None
    ) -> Tensor | None:
        """Rotary angles [prefix + T, head_dim / 2] of a block over `height` x `width` of its own tokens, or None."""

    @abstractmethod
    def guide(
        self, block: FlowBlock, a: Tensor, mu: Tensor, weight: Tensor, guidance: Guidance
    ) -> tuple[Tensor, Tensor]:
        """Combine the conditional and null halves of a, mu [2B, S, D] into sigma, mu [B, S, D].

        `weight` is [S, 1]: w of every token of the chunk.
        """

    def context(
        self,
        block: BlockConfig,
        grid: tuple[int, int],
        condition: Tensor | None = None,
        class_vector: Tensor | None = None,
        temperature: Tensor | None = None,
    ) -> Context:
        """What a block over a grid of its own tokens reads besides them, its rotary angles included."""
        angles = self.rotation(block, *grid, 0 if condition is None else condition.shape[1], self.device)
        if angles is None:
            return Context(condition, class_vector, None, temperature)
        return Context(condition, class_vector, (angles.cos(), angles.sin()), temperature)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        grid = self.config.grid(x.shape)
        if grid[0] * grid[1] != self.side**2 and any(block.positions == "learned" for block in self.block_configs):
            raise UsageError(f"{grid[0]} x {grid[1]} tokens; this model's learned positions cover {self.side**2}")
        return grid

    def forward(self, x: Tensor, y: Tensor | None = None) -> FlowOutput:
        """Normalise data.

        Args:
            x: [B, C, H, W] float32.
            y: Condition: text features [B, m, txt_dim] (STARFlow), class ids [B] int64 with negative ids dropped
                (TARFlow), or None.
        """
        self._grid(x)
        self._check_condition(y, len(x))
        height, width = x.shape[2:]
        tokens = patchify(x, self.config.patch_size, channel_first=self.channel_first)
        activations, log_dets = [tokens], []
        raws: list[Tensor | None] = []
        text = None
        for config, block in zip(self.block_configs, self.blocks, strict=True):
            if not isinstance(block, FlowBlock):
                log_dets.append(tokens.new_zeros(tokens.shape[0]))
                raws.append(None)
                activations.append(tokens)
                continue
            condition = y if config.condition == "prefix" else None
            vectors = block.class_vectors(y, x.shape[0]) if config.condition == "class" else None
            own = self._own_tokens(tokens, config, height, width)
            context = self.context(config, config.grid(height, width), condition, vectors)
            out = block(own.flip(1) if config.reversed else own, context)
            tokens = self._tokens(out.z.flip(1) if config.reversed else out.z, config, height, width)
            text = out.condition
            activations.append(tokens)
            log_dets.append(out.log_det)
            raws.append(out.raw)
        loss_z = 0.5 * tokens.square().mean()
        loss_log_det = -torch.stack([term.mean() for term in log_dets]).sum()
        return FlowOutput(
            z=self._shape_noise(tokens, height, width),
            log_dets=tuple(log_dets),
            activations=tuple(activations),
            raws=tuple(raws),
            condition=text,
            loss=loss_z + loss_log_det,
            loss_z=loss_z,
            loss_log_det=loss_log_det,
        )

    def log_likelihood(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x | y) in nats: [B, C, H, W] -> [B] float32 (change of variables, standard normal or learned prior)."""
        out = self(x, y)
        z, log_prior = out.activations[-1], 0.0
        if self.sqrt_prior is not None:
            z = z / self.sqrt_prior
            log_prior = float(self.sqrt_prior.log().sum())
        log_det = sum(term.flatten(1).sum(1) for term in out.log_dets if term.ndim > 1)
        return gaussian_log_density(z) + log_det - log_prior

    @torch.no_grad()
    def reverse(
        self,
        noise: Tensor,
        y: Tensor | None = None,
        y_null: Tensor | None = None,
        *,
        guidance: float | Guidance = 0.0,
        attention_temperature: float = 1.0,
        jacobi: Jacobi | None = None,
        sequence: list[Tensor] | None = None,
        trace: list[JacobiTrace] | None = None,
        students: Mapping[int, BlockInverse] | None = None,
    ) -> Tensor:
        """Sample [B, C, H, W] float32, token by token, from the deep block down.

        Args:
            noise: Standard normal noise of `noise_shape`, float32.
            y: Condition of every sample (see `forward`).
            y_null: STARFlow's null condition [B, m, txt_dim], needed for guidance.
            attention_temperature: STARFlow divides all attention logits by it; TARFlow those of its unguided branch.
            jacobi: Decode in chunks iterated to a fixed point in place of single tokens.
            sequence: Filled with the data after every block, [B, C, H, W] each.
            trace: Filled with the convergence of every chunk.
            students: By flow block, what makes its tokens in its place.
        """
        guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        self._check_condition(y, len(noise))
        tokens, (height, width) = self._noise_tokens(noise)
        for config, block in zip(reversed(self.block_configs), reversed(self.blocks), strict=True):
            if isinstance(block, FlowBlock):
                own, grid = self._own_tokens(tokens, config, height, width), config.grid(height, width)
                z = own.flip(1) if config.reversed else own
                if students and config.index in students:
                    weights = z.new_full((len(z),), guidance.weight_at(config.index, len(self.blocks)))
                    x = students[config.index](z, y, weights)
                else:
                    x = self._sample_block(block, z, grid, y, y_null, guidance, attention_temperature, jacobi, trace)
                tokens = self._tokens(x.flip(1) if config.reversed else x, config, height, width)
            if sequence is not None:
                sequence.append(self._image(tokens, height, width))
        return self._image(tokens, height, width)

    def _sample_block(
        self,
        block: FlowBlock,
        z: Tensor,
        grid: tuple[int, int],
        y: Tensor | None,
        y_null: Tensor | None,
        guidance: Guidance,
        attention_temperature: float,
        jacobi: Jacobi | None,
        trace: list[JacobiTrace] | None,
    ) -> Tensor:
        config = block.block
        batch, length, _ = z.shape
        guided = self.guides(config, guidance)
        condition, vectors = None, None
        if config.condition == "prefix" and y is not None:
            if guided and y_null is None:
                raise UsageError("guidance needs y_null, the null condition")
            condition = torch.cat([y, y_null.expand_as(y)]) if guided and y_null is not None else y
        if config.condition == "class":
            # Sampling indexes negative ids from the end, as the published sampler does.
            labels = y if y is None else y % config.condition_width
            vectors = block.class_vectors(labels, batch)
            vectors = torch.cat([vectors, block.class_vectors(None, batch)]) if guided else vectors
        temperature = self._temperature(attention_temperature, batch, guided)
        context = self.context(config, grid, condition, vectors, temperature)
        caches = block.caches(2 * batch if guided else batch, length, context)

        def transform(previous: Tensor, index: int, noise: Tensor, first: int) -> Tensor:
            """One pass over S tokens: inputs `previous` at `index`.., outputs the tokens `first`.. from their noise."""
            a, mu = block.step(torch.cat([previous, previous]) if guided else previous, index, context, caches)
            if guided:
                t = torch.arange(first, first + noise.shape[1], device=z.device)[:, None]
                anneal = t / (length - 1) if guidance.annealed else torch.ones_like(t)
                sigma, mu = self.guide(block, a, mu, guidance.weight * anneal, guidance)
            else:
                sigma = block.sigma(a)
            return noise * sigma + mu

        x = z.clone()
        # Without a start token the first token passes unchanged and every network input is one token behind its output.
        offset = 0 if config.start_token else 1
        if config.start_token:
            padded = torch.cat([block.sos_embed.expand(batch, 1, -1), x], dim=1)
        else:
            padded = x
        chunk = jacobi.chunk if jacobi else 1
        for start in range(offset, length, chunk):
            end = min(start + chunk, length)
            index = start - offset
            changes: list[float] = []
            for _ in range(jacobi.max_iterations if jacobi else 1):
                previous = padded[:, index : index + end - start]
                new = transform(previous, index, z[:, start:end], start)
                if jacobi:
                    changes.append(float((new - x[:, start:end]).square().mean() / new.square().mean()))
                x[:, start:end] = new
                padded[:, padded.shape[1] - length :] = x
                if jacobi and changes[-1] < jacobi.threshold:
                    break
            if jacobi and trace is not None:
                trace.append(JacobiTrace(config.index, start, end - start, tuple(changes)))
        return x

    def _image(self, tokens: Tensor, height: int, width: int) -> Tensor:
        return unpatchify(tokens, self.config.patch_size, height, width, channel_first=self.channel_first)

    def own_tokens(self, tokens: Tensor, block: BlockConfig) -> Tensor:
        """Tokens [B, T, D] of data of the training size as those of a block, both in raster order."""
        return self._own_tokens(tokens, block, self.config.img_size, self.config.img_size)

    def _own_tokens(self, tokens: Tensor, block: BlockConfig, height: int, width: int) -> Tensor:
        """The same data as tokens of a block: patches of its size in place of `patch_size`, both in raster order."""
        if block.patch == (self.config.patch_size,) * 2:
            return tokens
        return patchify(self._image(tokens, height, width), block.patch, channel_first=self.channel_first)

    def tokens_of(self, own: Tensor, block: BlockConfig) -> Tensor:
        """The inverse of `own_tokens`."""
        return self._tokens(own, block, self.config.img_size, self.config.img_size)

    def _tokens(self, own: Tensor, block: BlockConfig, height: int, width: int) -> Tensor:
        """The inverse of `_own_tokens`."""
        if block.patch == (self.config.patch_size,) * 2:
            return own
        x = unpatchify(own, block.patch, height, width, channel_first=self.channel_first)
        return patchify(x, self.config.patch_size, channel_first=self.channel_first)

    @abstractmethod
    def _shape_noise(self, tokens: Tensor, height: int, width: int) -> Tensor: ...

    @abstractmethod
    def _noise_tokens(self, noise: Tensor) -> tuple[Tensor, tuple[int, int]]: ...

    @abstractmethod
    def _check_condition(self, y: Tensor | None, batch: int) -> None: ...

    @abstractmethod
    def guides(self, block: BlockConfig, guidance: Guidance) -> bool: ...

    @abstractmethod
    def _temperature(self, value: float, batch: int, guided: bool) -> Tensor | None: ...
