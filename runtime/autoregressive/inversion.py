"""Inversion: from data back to the noise that the flow turns into it, and the density of the data.

A step graph computes x = z sigma + mu, with mu and sigma from the tokens before. Given all tokens of x, a pass with z = 0 yields
mu and a pass with z = 1 yields sigma + mu. Then z = (x - mu) / sigma is the output of the block above. No token depends on the
result of another one, so a block takes two passes over all of its tokens. The weights are those of the step graphs.

    log p(x) = log p(z of the deep block) - sum over blocks and tokens of log sigma      (TARFlow, eq. 5; STARFlow, eq. 2)
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from starflow.runtime.autoregressive.sampling_loop import block_inputs
from starflow.runtime.autoregressive.tokens import from_block, to_block
from starflow.runtime.backends.base import Backend
from starflow.runtime.backends.block_runner import BlockInputs
from starflow.runtime.bundle.autoregressive_manifest import AutoregressiveManifest, Block
from starflow.runtime.conditions import Conditions
from starflow.runtime.plain.errors import NotFiniteError
from starflow.runtime.plain.guidance import Guidance


@dataclass(frozen=True)
class InvertedBlock:
    """One flow block of inverted data, in block order."""

    block: Block
    inputs: BlockInputs  # the inputs that yield the tokens: their noise, and the condition
    tokens: NDArray  # [B, T, D], the output of the block
    log_sigma: NDArray  # [B, T, D] float64; 0 for a token that passes unchanged


def invert_batch(
    backend: Backend, manifest: AutoregressiveManifest, x: NDArray, conditions: Conditions, chunk: int | None = None
) -> Iterator[InvertedBlock]:
    """Invert the flow blocks from the data to the deep block, without guidance.

    Args:
        x: [B, T, D] float32, tokens of the model in raster order, one batch of the exported size.
        chunk: Largest number of tokens in a pass; None takes the largest number the bundle allows.

    Raises:
        NotFiniteError: a block produced NaN or infinity.
    """
    for block in manifest.blocks:
        if block.identity:
            continue
        tokens = to_block(x, manifest.model, block)
        inputs = block_inputs(manifest, block, tokens, conditions, [Guidance()] * manifest.batch, 1.0)
        runner = backend.block_runner(block.index)
        mu, above = (
            runner.decode_given(replace(inputs, noise=np.full_like(tokens, value)), tokens, chunk)
            for value in (0.0, 1.0)
        )
        first = block.first_token  # a token before it passes unchanged
        sigma = above[:, first:] - mu[:, first:]
        with np.errstate(all="ignore"):
            noise = np.concatenate([tokens[:, :first], (tokens[:, first:] - mu[:, first:]) / sigma], axis=1)
            log_sigma = np.pad(np.log(sigma.astype(np.float64)), ((0, 0), (first, 0), (0, 0)))
        if not (np.isfinite(noise).all() and np.isfinite(log_sigma).all()):
            runner.clear()
            raise NotFiniteError(f"flow block {block.index} produced NaN or infinity in the inversion")
        yield InvertedBlock(block, replace(inputs, noise=noise), tokens, log_sigma)
        x = from_block(noise, manifest.model, block)
