"""The teacher of a student: a flow block whose density, guidance included, is known exactly."""

import torch
from torch import Tensor, nn

from starflow.runtime.plain.guidance import Guidance
from starflow.training.autoregressive.flow_block import FlowBlock, Normalised
from starflow.training.autoregressive.model import AutoregressiveFlow

UNGUIDED, GUIDED = Guidance(), Guidance(1.0)


class TeacherBlock(nn.Module):
    """One flow block of a flow, normalising tokens under guidance.

    Guided sampling draws each token from a normal distribution whose scale and shift come from those with and without the condition
    (Gu et al., NeurIPS 2025, section 3.5). So what it draws has a density, token by token, and one pass over a sequence gives it.
    """

    def __init__(self, flow: AutoregressiveFlow, index: int) -> None:
        super().__init__()
        self._flow = [flow]  # hidden from `parameters`: nothing of it learns
        self.block = flow.block_configs[index]
        self.grid = self.block.grid(flow.config.img_size, flow.config.img_size)
        self.guided = self.block.condition != "none" and flow.guides(self.block, GUIDED)

    def prior(self) -> Tensor:
        """Standard deviation of the block's noise, [T, D] in block order; the block is the deep one."""
        flow = self._flow[0]
        count = self.grid[0] * self.grid[1]
        if flow.sqrt_prior is None:
            return torch.ones(count, self.block.token_dim, device=flow.device)
        own = flow.own_tokens(flow.sqrt_prior[None], self.block)[0]
        return own.flip(0) if self.block.reversed else own

    def normalise(self, x: Tensor, condition: Tensor | None, null: Tensor | None, guidance: Tensor) -> Normalised:
        """z = (x - mu) / sigma of tokens, with gradients for them.

        Args:
            x: [B, T, D] float32 in block order.
            condition: As the model takes it, see `AutoregressiveFlow.forward`.
            null: Null condition tokens [m, width] of a model with condition tokens, else None.
            guidance: [B] float32, the weight of each image.
        """
        flow, block = self._flow[0], self._flow[0].blocks[self.block.index]
        assert isinstance(block, FlowBlock)
        count, tokens, vectors = len(x), None, None
        if self.block.condition == "prefix":
            assert condition is not None
            tokens = condition
            if self.guided:
                assert null is not None
                tokens = torch.cat([condition, null.expand_as(condition)])
        elif self.block.condition == "class":
            vectors = block.class_vectors(condition, count)
            if self.guided:
                vectors = torch.cat([vectors, block.class_vectors(None, count)])
        context = flow.context(self.block, self.grid, tokens, vectors)
        inputs = block.opened(x)
        raw, _ = block.network(torch.cat([inputs, inputs]) if self.guided else inputs, context)
        a, mu = block.of_tokens(raw)
        if self.guided:
            sigma, mu = flow.guide(block, a, mu, guidance[:, None, None], UNGUIDED)
        else:
            sigma = block.sigma(a)
        return Normalised((x - mu) / sigma, -sigma.log(), raw, None)
