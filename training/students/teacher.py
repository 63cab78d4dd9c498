"""The teacher of a student: a flow block whose density, guidance included, is known exactly."""

from functools import cached_property

import torch
from torch import Tensor, nn

from starflow.runtime.plain.guidance import Guidance
from starflow.training.autoregressive.config import BlockConfig
from starflow.training.autoregressive.flow_block import Context, FlowBlock, Normalised
from starflow.training.autoregressive.model import AutoregressiveFlow

UNGUIDED, GUIDED = Guidance(), Guidance(1.0)


class Teacher(nn.Module):
    """The flow blocks of a flow from one of them up, normalising tokens under guidance.

    Guided sampling draws each token from a normal distribution whose scale and shift come from those with and without the condition
    (Gu et al., NeurIPS 2025, section 3.5). So what it draws has a density, token by token, and one pass over a sequence gives it. The
    noise of a shallow block is what the blocks above make, and has a density in the same way.
    """

    def __init__(self, flow: AutoregressiveFlow, index: int) -> None:
        super().__init__()
        self._flow = [flow]  # hidden from `parameters`: nothing of it learns
        self.block = flow.block_configs[index]
        self.deep = index == len(flow.blocks) - 1

    @cached_property
    def prior(self) -> Tensor:
        """Standard deviation of the deep block's noise, [T, D] in its order."""
        flow = self._flow[0]
        last = flow.block_configs[-1]
        rows, columns = last.grid(flow.config.img_size, flow.config.img_size)
        if flow.sqrt_prior is None:
            return torch.ones(rows * columns, last.token_dim, device=flow.device)
        own = flow.own_tokens(flow.sqrt_prior[None], last)[0]
        return own.flip(0) if last.reversed else own

    def log_density(self, x: Tensor, condition: Tensor | None, null: Tensor | None, guidance: Tensor) -> Tensor:
        """log p of what the block makes, [B] nats, without its constant, with gradients for the tokens.

        Args:
            x: [B, T, D] float32 in block order.
            condition: As the model takes it, see `AutoregressiveFlow.forward`.
            null: Null condition tokens [m, width] of a model with condition tokens, else None.
            guidance: [B] float32, the weight of each image.
        """
        normalised = self.normalise(x, condition, null, guidance)
        return normalised.log_det.sum((1, 2)) + self.noise_log_density(normalised.z, condition, null, guidance)

    def noise_log_density(self, z: Tensor, condition: Tensor | None, null: Tensor | None, guidance: Tensor) -> Tensor:
        """log p of the block's noise [B, T, D], which the blocks above make; see `log_density`."""
        flow, block = self._flow[0], self.block
        log_det = z.new_zeros(len(z))
        while block.index < len(flow.blocks) - 1:
            natural = z.flip(1) if block.reversed else z
            above = flow.block_configs[block.index + 1]
            own = flow.own_tokens(flow.tokens_of(natural, block), above)
            z, block = own.flip(1) if above.reversed else own, above
            if isinstance(flow.blocks[above.index], FlowBlock):
                normalised = self._normalise(above, z, condition, null, guidance)
                z, log_det = normalised.z, log_det + normalised.log_det.sum((1, 2))
        return log_det - 0.5 * (z / self.prior).square().sum((1, 2))

    def normalise(self, x: Tensor, condition: Tensor | None, null: Tensor | None, guidance: Tensor) -> Normalised:
        """z = (x - mu) / sigma of the block's tokens; see `log_density`."""
        return self._normalise(self.block, x, condition, null, guidance)

    def _normalise(
        self, config: BlockConfig, x: Tensor, condition: Tensor | None, null: Tensor | None, guidance: Tensor
    ) -> Normalised:
        flow, block = self._flow[0], self._flow[0].blocks[config.index]
        assert isinstance(block, FlowBlock)
        guided = config.condition != "none" and flow.guides(config, GUIDED)
        inputs, context = block.opened(x), self._context(config, condition, null, len(x), guided=guided)
        raw, _ = block.network(torch.cat([inputs, inputs]) if guided else inputs, context)
        a, mu = block.of_tokens(raw)
        if guided:
            sigma, mu = flow.guide(block, a, mu, guidance[:, None, None], UNGUIDED)
        else:
            sigma = block.sigma(a)
        return Normalised((x - mu) / sigma, -sigma.log(), raw, None)

    @torch.no_grad()
    def states(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        """Hidden states after each layer of the block as it reads tokens x under their condition, [B, T, channels] each."""
        block, states = self._flow[0].blocks[self.block.index], list[Tensor]()
        assert isinstance(block, FlowBlock)
        block.network(block.opened(x), self._context(self.block, condition, None, len(x), guided=False), states)
        return states

    def _context(
        self, config: BlockConfig, condition: Tensor | None, null: Tensor | None, count: int, *, guided: bool
    ) -> Context:
        """What a flow block reads besides tokens; `guided`, for twice as many rows, the second half without the condition."""
        flow, block, tokens, vectors = self._flow[0], self._flow[0].blocks[config.index], None, None
        assert isinstance(block, FlowBlock)
        if config.condition == "prefix":
            assert condition is not None
            tokens = condition
            if guided:
                assert null is not None
                tokens = torch.cat([condition, null.expand_as(condition)])
        elif config.condition == "class":
            vectors = block.class_vectors(condition, count)
            if guided:
                vectors = torch.cat([vectors, block.class_vectors(None, count)])
        return flow.context(config, config.grid(flow.config.img_size, flow.config.img_size), tokens, vectors)
