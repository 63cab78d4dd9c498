"""A student: one pass from the noise of a flow block to its tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from starflow.training.autoregressive.flow_block import Context, FlowBlock
from starflow.training.autoregressive.model import AutoregressiveFlow
from starflow.training.families import build_flow
from starflow.training.students.config import StudentConfig


class Made(NamedTuple):
    """What a student makes of noise."""

    tokens: Tensor  # [B, T, D] in block order
    log_sigma: Tensor  # [B, T, D]; its sum is the log-determinant of the transform
    states: tuple[Tensor, ...] = ()  # [B, T, channels] hidden states after each layer of the last stage

    def surprise(self, noise: Tensor, tokens: Tensor) -> Tensor:
        """-log q(x_t | z_<t) of other tokens x, [B, T, D] nats, without its constant.

        Of the noise before it, the student makes a normal distribution for token t; these tokens need not be its own.
        """
        z = noise + (tokens - self.tokens) * torch.exp(-self.log_sigma)
        return self.log_sigma + 0.5 * z.square()

    def misalignment(self, teacher: Sequence[Tensor]) -> Tensor:
        """How far its hidden states are from those of its teacher's layers at the same depth: |found - wanted|^2 / |wanted|^2.

        The mean over all layers but the last, whose states become tokens: the teacher reads those before a token, the student
        the noise before it, so both can hold the same of it, but a guided token is not what the teacher makes of its states.
        Hidden alignment (BiFlow, arXiv 2512.10953) does the same for a network that reads all noise.
        """
        depth, layers = len(teacher), len(self.states)
        if layers < 2:
            return self.tokens.new_zeros(())
        distances = []
        for layer, found in enumerate(self.states[:-1], 1):
            wanted = teacher[max(layer * depth // layers, 1) - 1]
            distances.append((found.float() - wanted).square().mean() / wanted.square().mean())
        return torch.stack(distances).mean()


class Student(nn.Module):
    """A chain of stages, each a flow block that reads its own inputs (see `StudentConfig`).

    Tokens come from the noise before them, so the density of what it makes is known: log q(x) = log N(z) - sum log sigma.
    """

    angles: Tensor | None

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        block, model = config.of_stage, config.model
        grid = block.grid(model.img_size, model.img_size)
        self.stages = nn.ModuleList(FlowBlock(block, grid[0] * grid[1]) for _ in range(config.stages))
        self.embed_guidance = nn.Sequential(
            nn.Linear(1, block.channels), nn.SiLU(), nn.Linear(block.channels, block.channels)
        )
        last = self.embed_guidance[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.device("meta"):
            teacher = build_flow(model)
        prefix = getattr(model, "txt_size", 0) if block.condition == "prefix" else 0
        self.register_buffer("angles", teacher.rotation(block, *grid, prefix, torch.device("cpu")), persistent=False)

    @classmethod
    def beginner(cls, config: StudentConfig, teacher: AutoregressiveFlow) -> "Student":
        """A student as training begins: each stage of the teacher's depth is one pass of Jacobi iteration, a copy of its block.

        Stages of another depth have random weights and leave tokens nearly as they are.
        """
        student = cls(config)
        if config.layers == config.of_teacher.layers and student.device.type != "meta":
            for stage in student.stages:
                stage.load_state_dict(teacher.blocks[config.block].state_dict())
        return student

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def forward(self, noise: Tensor, condition: Tensor | None, guidance: Tensor) -> Tensor:
        """The tokens that the block makes of noise.

        Args:
            noise: [B, T, D] float32 in block order.
            condition: Class ids [B] int64, negative for no class; condition tokens [B, m, width] float32; or None.
            guidance: [B] float32, guidance weights.

        Returns:
            [B, T, D] float32 in block order.
        """
        return self.transform(noise, condition, guidance).tokens

    def transform(self, noise: Tensor, condition: Tensor | None, guidance: Tensor) -> Made:
        """See `forward`; the logarithm of every token's scale and the hidden states as well."""
        x, log_sigma = noise, torch.zeros_like(noise)
        strength: Tensor = self.embed_guidance(guidance[:, None].to(noise.dtype))[:, None]
        rotation = None if self.angles is None else (self.angles.cos(), self.angles.sin())
        states: list[Tensor] = []
        for stage in self.stages:
            assert isinstance(stage, FlowBlock)
            states.clear()
            vector, tokens = strength, None
            if stage.block.condition == "class":
                vector = vector + stage.class_vectors(condition, len(noise))
            elif stage.block.condition == "prefix":
                tokens = condition
            raw, _ = stage.network(stage.opened(x), Context(tokens, vector, rotation), states)
            a, mu = stage.of_tokens(raw)
            x = x * stage.sigma(a) + mu
            log_sigma = log_sigma + stage.log_sigma(a)
        return Made(x, log_sigma, tuple(states))
